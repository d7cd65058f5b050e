# /etc/connect/api.hcl: a second service on the same machine. It has no port and only sends
# requests: to `web` at 127.0.0.1:9090.
service {
  name = "api"

  connect {
    sidecar_service {
      port = 20001

      proxy {
        upstreams {
          destination_name = "web"
          local_bind_port  = 9090
        }
      }
    }
  }
}
