# bundle exec ruby enqueue.rb COUNT [SECONDS [CLASS]]
# Enqueues COUNT quick jobs, or as many of a class (SleepJob) that each take SECONDS; prints their jids, a line each.
require_relative "worker"

Sidekiq.logger.level = Logger::WARN
count = Integer(ARGV.fetch(0))
job, args = ARGV[1] ? [Object.const_get(ARGV.fetch(2, "SleepJob")), [Float(ARGV[1])]] : [QuickJob, []]

# A thousand at a time, as Sidekiq's documentation asks of push_bulk.
count.times.each_slice(1000) do |slice|
  puts Sidekiq::Client.push_bulk("class" => job, "args" => slice.map { args })
end
