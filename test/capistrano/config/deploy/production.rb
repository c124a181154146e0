ENV.fetch("APP_SERVERS").split.each { |address| server address, user: "deploy", roles: %w[app] }
