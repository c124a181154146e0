# frozen_string_literal: true

# Brings Sidekiq to the new release at the end of a deploy, by Capistrano 3. In the app's Capfile, below
# `require "capistrano/deploy"`:
#
#   load "/path/to/redis_sidekiq.rake"
#
# or put this file into lib/capistrano/tasks/, which the Capfile that `cap install` makes imports anyway.
#
# Settings, with their defaults, for config/deploy.rb:
#
#   set :redis_sidekiq_by, :event
#       :event sends the app's deploy event, and Salt brings each of the app's hosts to the new release, losing no job.
#       It needs the role deploy and the app's name in redis_sidekiq:deploy:apps of the pillar, where it is sent from.
#       :systemctl restarts the units on each server, one server after the other; systemd stops before it starts.
#   set :redis_sidekiq_app, -> { fetch(:application) }
#       The app's name in the pillar and in the master's configuration.
#   set :redis_sidekiq_event_role, nil
#       Where the event is sent from: nil is the machine that cap runs on, a role is that role's first (primary) server.
#   set :redis_sidekiq_role, :app
#       For :systemctl: the servers that Sidekiq runs on.
#   set :redis_sidekiq_units, %w[sidekiq]
#       For :systemctl: the units, as redis_sidekiq:sidekiq:services of the pillar names them.

namespace :load do
  task :defaults do
    set_if_empty :redis_sidekiq_by, :event
    set_if_empty :redis_sidekiq_app, -> { fetch(:application) }
    set_if_empty :redis_sidekiq_event_role, nil
    set_if_empty :redis_sidekiq_role, :app
    set_if_empty :redis_sidekiq_units, %w[sidekiq]
  end
end

namespace :redis_sidekiq do
  desc "Bring Sidekiq to the current release, as :redis_sidekiq_by says"
  task :deployed do
    by = fetch(:redis_sidekiq_by)
    unless %i[event systemctl].include?(by)
      raise ArgumentError, ":redis_sidekiq_by is #{by.inspect}; allowed: :event, :systemctl"
    end

    invoke "redis_sidekiq:#{by}"
  end

  desc "Tell Salt's master that the app has a new release"
  task :event do
    app = fetch(:redis_sidekiq_app).to_s
    unless app.match?(/\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z/)
      raise ArgumentError, ":redis_sidekiq_app is #{app.inspect}; allowed: letters, digits, _ and -"
    end

    command = [:sudo, "-n", "/usr/local/sbin/sidekiq-deployed-#{app}"]
    role = fetch(:redis_sidekiq_event_role)
    if role
      server = primary(role)
      raise ArgumentError, "No server has the role #{role.inspect}, so no deploy event was sent" unless server

      on(server) { execute(*command) }
    else
      run_locally { execute(*command) }
    end
  end

  desc "Restart Sidekiq's units on each server, one server after the other"
  task :systemctl do
    role = fetch(:redis_sidekiq_role)
    servers = roles(role)
    raise ArgumentError, "No server has the role #{role.inspect}, so nothing was restarted" if servers.empty?

    on servers, in: :sequence do
      Array(fetch(:redis_sidekiq_units)).each { |unit| execute :sudo, "-n", "systemctl", "restart", unit }
    end
  end
end

after "deploy:published", "redis_sidekiq:deployed"
