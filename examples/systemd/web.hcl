# /etc/connect/web.hcl: the service `web`, whose application listens on port 8080.
service {
  name = "web"
  port = 8080

  connect {
    sidecar_service {
      # Where its Envoy listens: a port of its own for each sidecar of the machine.
      port = 20000
    }
  }
}
