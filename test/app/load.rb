# bundle exec ruby load.rb [DEPTH [even]]
# Keeps about DEPTH jobs waiting until the file /tmp/load.stop is there. All take 50 ms with `even`; else most do, some
# take 5 ms, a few up to 20 s, and one in fifty fails. Each jid is in the set `enqueued` before its job is in the queue.
# Prints their number.
require "securerandom"
require_relative "worker"

Sidekiq.logger.level = Logger::WARN
DEPTH = Integer(ARGV.fetch(0, "200"))
EVEN = ARGV[1] == "even"
MIXED = [["SleepJob", [0.05]]] * 80 + [["SleepJob", [0.005]]] * 16 + [["FailJob", []]] * 2 +
  [["SleepJob", [4.0]], ["ChildJob", [2.0]]]
count = 0

# Redis may be away for a while.
def insist
  yield
rescue StandardError
  sleep 0.05
  File.exist?("/tmp/load.stop") ? raise : retry
end

until File.exist?("/tmp/load.stop")
  waiting = insist { Sidekiq.redis { |redis| redis.llen("queue:default") } }
  [DEPTH - waiting, 0].max.times do
    kind, args = EVEN ? MIXED.first : MIXED[count % MIXED.size]
    args = [20.0] if !EVEN && count % 4000 == 3999
    jid = SecureRandom.hex(12)
    insist { Sidekiq.redis { |redis| redis.sadd("enqueued", [jid]) } }
    insist { Sidekiq::Client.push("class" => Object.const_get(kind), "args" => args, "jid" => jid) }
    count += 1
  end
  sleep 0.05
end
puts count
