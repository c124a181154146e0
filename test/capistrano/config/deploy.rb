set :application, "app"
set :repo_url, ENV.fetch("APP_REPOSITORY")
set :branch, "main"
set :deploy_to, "/srv/app"
set :format, :simpletext
set :ssh_options, { verify_host_key: :never, keys: ["/home/deploy/.ssh/id_ed25519"] }
