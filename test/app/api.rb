# bundle exec ruby api.rb
# Uses each part of Sidekiq's API, its schedule and its web page once; prints what failed, a line each, then "done".
require "sidekiq/api"
require_relative "worker"

Sidekiq.logger.level = Logger::WARN

def try(name)
  yield
rescue StandardError, LoadError => err
  puts "#{name}: #{err.class}: #{err.message}"
end

queue = Sidekiq::Queue.new("aside")
try("push") { 3.times { QuickJob.set(queue: "aside").perform_async } }
try("bulk") { Sidekiq::Client.push_bulk("class" => QuickJob, "queue" => "aside", "args" => [[], []]) }
try("queue") { raise "#{queue.size} jobs" unless queue.size == 5 && queue.latency && queue.count == 5 }
try("queue find") { queue.find_job(queue.first.jid).delete }
try("queues") { Sidekiq::Queue.all.each(&:size) }
try("schedule") { QuickJob.set(queue: "aside").perform_in(3600) }
sets = [Sidekiq::ScheduledSet.new, Sidekiq::RetrySet.new, Sidekiq::DeadSet.new]
sets.each do |set|
  try(set.name) { set.size; set.each(&:jid); set.scan("Job") { |entry| entry.jid }; set.find_job("none") }
end
try("reschedule") { Sidekiq::ScheduledSet.new.first.reschedule(Time.now + 7200) }
try("scheduled to queue") { Sidekiq::ScheduledSet.new.first.add_to_queue }
try("kill") { QuickJob.set(queue: "aside").perform_in(3600); Sidekiq::ScheduledSet.new.first.kill }
try("retry dead") { Sidekiq::DeadSet.new.first.retry }
try("retry all") { Sidekiq::RetrySet.new.retry_all }
try("kill all") { Sidekiq::RetrySet.new.kill_all }
try("clear") { [queue, *sets].each(&:clear) }
try("stats") do
  stats = Sidekiq::Stats.new
  [stats.processed, stats.failed, stats.queues, stats.workers_size, stats.processes_size, stats.default_queue_latency]
  stats.reset("failed")
  Sidekiq::Stats::History.new(3).processed
end
try("processes") { Sidekiq::ProcessSet.new.each { |process| [process.identity, process.stopping?] } }
try("cleanup") { Sidekiq::ProcessSet.new.cleanup }
try("work") { (defined?(Sidekiq::WorkSet) ? Sidekiq::WorkSet : Sidekiq::Workers).new.each { |*| } }
try("info") { Sidekiq.respond_to?(:redis_info) ? Sidekiq.redis_info : Sidekiq.default_configuration.redis_info }
try("metrics") { Sidekiq::Metrics::Query.new.top_jobs if Sidekiq::VERSION.to_i > 6 && require("sidekiq/metrics/query") }
try("web") do
  require "sidekiq/web"
  %w[/ /queues /queues/default /retries /scheduled /morgue /busy /stats /dashboard/stats].each do |path|
    env = {"REQUEST_METHOD" => "GET", "PATH_INFO" => path, "SCRIPT_NAME" => "", "QUERY_STRING" => "",
           "rack.session" => {}, "rack.input" => StringIO.new, "rack.url_scheme" => "http",
           "SERVER_NAME" => "here", "SERVER_PORT" => "80", "HTTP_HOST" => "here"}
    status, = Sidekiq::Web.new.call(env)
    puts "web #{path}: #{status}" unless [200, 302].include?(status)
  end
end
puts "done"
