# /etc/connect/web.hcl: the service `web`, whose application listens on port 8080.
service {
  name = "web"
  port = 8080

  connect {
    sidecar_service {
      # Envoy's public listener: another port for each sidecar on the machine.
      port = 20000
    }
  }
}
