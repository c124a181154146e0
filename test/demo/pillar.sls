# The demo's pillar: what differs from the defaults, and no more.
redis_sidekiq:
  redis:
    # A demo host reaches no download site: the tarball lies in its package folder.
    source: /packages/redis-7.0.15.tar.gz
    source_hash: sha256=4b1dc4ee6d622a09fff9c6777191209750fb5e5a725ef78ea012d6eef4c22982
  sidekiq:
    # The distribution's Sidekiq; the app's Gemfile asks for no version of its own.
    install: package
    services:
      sidekiq:
        app_dir: /srv/app
        require: ./worker.rb
        concurrency: 10
