# The jobs of the demo and the tests: sidekiq -r ./worker.rb
require "sidekiq"

# Debian 12's Sidekiq 6.4 uses calls that its ruby-redis 4.8 warns about, ten times a second.
Redis.silence_deprecations = true if defined?(Redis) && Redis.respond_to?(:silence_deprecations=)

# Each job leaves its traces in Redis, by jid: the set `worked` has it once, the hash `runs` counts how often it ran to
# its end, `started` how often it began, the sorted set `ends` has when it last ended (epoch s). More beginnings than
# ends: it was interrupted and pushed back.
module Traces
  def trace
    Sidekiq.redis { |redis| redis.hincrby("started", jid, 1) }
    yield
    Sidekiq.redis do |redis|
      redis.hincrby("runs", jid, 1)
      redis.sadd("worked", [jid])
      redis.zadd("ends", Time.now.to_f, jid)
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

# Fails each time, and is tried once more some seconds later; then it is dead.
class FailJob
  include Sidekiq::Job
  sidekiq_options retry: 1
  sidekiq_retry_in { 1 }

  def perform
    raise "as meant"
  end
end

# Works by a program of its own for so many seconds, and fails if that comes to harm.
class ChildJob
  include Sidekiq::Job
  include Traces

  def perform(seconds)
    trace { system("sleep", seconds.to_s) or raise "the child came to harm: #{$?.inspect}" }
  end
end

# Will not be interrupted: goes on for so many seconds whatever Sidekiq says.
class StubbornJob
  include Sidekiq::Job
  include Traces

  def perform(seconds)
    trace do
      till = Time.now + seconds
      begin
        sleep(till - Time.now) while Time.now < till
      rescue Exception
        retry
      end
    end
  end
end
