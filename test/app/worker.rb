# The jobs of the demo and the tests: sidekiq -r ./worker.rb
require "sidekiq"

# Debian 12's Sidekiq 6.4 uses calls that its ruby-redis 4.8 warns about, ten times a second.
Redis.silence_deprecations = true if defined?(Redis) && Redis.respond_to?(:silence_deprecations=)

# Each job leaves its traces in Redis, by jid: the set `worked` has it once, the hash `runs` counts how often it ran to
# its end, `started` how often it began. More beginnings than ends: it was interrupted and pushed back.
module Traces
  def trace
    Sidekiq.redis { |redis| redis.hincrby("started", jid, 1) }
    yield
    Sidekiq.redis do |redis|
      redis.hincrby("runs", jid, 1)
      redis.sadd("worked", [jid])
    end
  end
end

# Done at once.
class QuickJob
  include Sidekiq::Job
  include Traces

  def perform
    trace {}
  end
end

# Takes as long as it is told to, in seconds.
class SleepJob
  include Sidekiq::Job
  include Traces

  def perform(seconds)
    trace { sleep(seconds) }
  end
end
