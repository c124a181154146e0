# Ruby works on one core: on a large host more processes.
redis_sidekiq:
  sidekiq:
    services:
      sidekiq:
        processes: 4
