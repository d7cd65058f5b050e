//! Access logs of the admin server: Envoy `config.accesslog.v3.AccessLog`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::input::config::parse_object;
use crate::{Admin, Error};

/// `AccessLogs` of Consul's `proxy-defaults`, as in the agent's JSON (`{"Enabled":
/// true, "Type": "file", ...}`). Keys that only concern listeners are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AccessLogs {
    /// The other fields have no effect without it.
    pub enabled: bool,
    #[serde(rename = "Type")]
    pub sink: AccessLogSink,
    pub path: String,
    /// A JSON object of Envoy's command operators; takes precedence over the text.
    #[serde(rename = "JSONFormat")]
    pub json_format: String,
    /// A line of Envoy's command operators, without the newline. Without either format,
    /// Consul's own JSON object is written.
    pub text_format: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogSink {
    #[default]
    #[serde(alias = "")]
    Stdout,
    Stderr,
    File,
}

/// Fields that Consul logs of each request if no format is set, with Envoy's command
/// operators.
const DEFAULT_FORMAT: [(&str, &str); 24] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

impl Admin {
    /// Access log of the admin server.
    pub(crate) fn access_log(&self) -> Result<Value, Error> {
        if self.access_logs.enabled {
            return self.access_logs.access_log();
        }
        Ok(json!({
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": self.access_log_path,
            },
        }))
    }
}

impl AccessLogs {
    fn access_log(&self) -> Result<Value, Error> {
        let message = match self.sink {
            AccessLogSink::Stdout => "stream.v3.StdoutAccessLog",
            AccessLogSink::Stderr => "stream.v3.StderrAccessLog",
            AccessLogSink::File => "file.v3.FileAccessLog",
        };
        let mut config = json!({
            "@type": format!("type.googleapis.com/envoy.extensions.access_loggers.{message}"),
            "log_format": self.log_format()?,
        });
        if self.sink == AccessLogSink::File {
            if self.path.is_empty() {
                return Err(Error::AccessLogPath);
            }
            config["path"] = json!(self.path);
        }
        Ok(json!({ "name": "Consul Listener Filter Log", "typed_config": config }))
    }

    /// Envoy's `config.core.v3.SubstitutionFormatString`.
    fn log_format(&self) -> Result<Value, Error> {
        if !self.json_format.is_empty() {
            let format = parse_object("proxy-defaults AccessLogs.JSONFormat", &self.json_format)?;
            return Ok(json!({ "json_format": format }));
        }
        if !self.text_format.is_empty() {
            let line = format!("{}\n", self.text_format);
            return Ok(json!({ "text_format_source": { "inline_string": line } }));
        }
        let format: Value = DEFAULT_FORMAT
            .into_iter()
            .map(|(name, operator)| (name.to_owned(), Value::from(operator)))
            .collect();
        Ok(json!({ "json_format": format }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(access_logs: &Value) -> Result<Value, Error> {
        let admin = Admin {
            access_logs: serde_json::from_value(access_logs.clone()).expect("Consul's JSON"),
            ..Admin::default()
        };
        admin.access_log()
    }

    #[test]
    fn off_unless_enabled() {
        let off = log(&json!({"Type": "stderr", "DisableListenerLogs": true})).unwrap();
        assert_eq!(off["name"], "envoy.access_loggers.file");
        assert_eq!(off["typed_config"]["path"], "/dev/null");
    }

    #[test]
    fn sinks() {
        for (kind, message) in [
            ("", "stream.v3.StdoutAccessLog"),
            ("stdout", "stream.v3.StdoutAccessLog"),
            ("stderr", "stream.v3.StderrAccessLog"),
        ] {
            let log = log(&json!({"Enabled": true, "Type": kind, "Path": "/ignored"})).unwrap();
            let config = &log["typed_config"];
            assert!(config["@type"].as_str().unwrap().ends_with(message), "{log}");
            assert!(config.get("path").is_none(), "{log}");
            assert_eq!(config["log_format"]["json_format"].as_object().unwrap().len(), 24);
        }
        let file = log(&json!({"Enabled": true, "Type": "file", "Path": "/var/log/a"})).unwrap();
        assert_eq!(file["typed_config"]["path"], "/var/log/a");
        assert!(serde_json::from_value::<AccessLogs>(json!({"Type": "syslog"})).is_err());
    }

    #[test]
    fn formats() {
        let text = log(&json!({"Enabled": true, "TextFormat": "%METHOD%"})).unwrap();
        assert_eq!(
            text["typed_config"]["log_format"],
            json!({"text_format_source": {"inline_string": "%METHOD%\n"}})
        );
        let json = log(&json!({"Enabled": true, "JSONFormat": "{\"m\": \"%METHOD%\"}"})).unwrap();
        assert_eq!(json["typed_config"]["log_format"], json!({"json_format": {"m": "%METHOD%"}}));
    }

    #[test]
    fn refused() {
        let error = |logs: Value| log(&logs).unwrap_err().to_string();
        assert_eq!(
            error(json!({"Enabled": true, "Type": "file"})),
            "proxy-defaults AccessLogs has Type file without a Path; hint: set Path, or Type to \
             stdout or stderr"
        );
        assert_eq!(
            error(json!({"Enabled": true, "JSONFormat": "%METHOD%"})),
            "proxy-defaults AccessLogs.JSONFormat is not a JSON object: expected value at line 1 \
             column 1; hint: it must begin with { and end with }"
        );
    }
}
