//! Generates pods for property tests.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::annotation;
use crate::policy::Policy;
use crate::policy::tests::policy_of;

/// Any JSON, sometimes with values and keys that the injector knows.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // serde_json reads only some of the longer ones back as it wrote them.
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        any::<String>().prop_map(Value::from),
        Just(Value::from("true")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("name|env|ports|[a-z/~]{0,4}|\\PC{0,3}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Usually `usual`, otherwise absent, null or any JSON.
fn odd(usual: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        80 => usual.prop_map(Some),
        20 => Just(None),
        1 => Just(Some(Value::Null)),
        1 => json_value().prop_map(Some),
    ]
}

fn object(
    fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>,
) -> impl Strategy<Value = Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    values.prop_map(move |values| {
        let present =
            names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(present.collect())
    })
}

fn text(pattern: &'static str) -> impl Strategy<Value = Value> {
    pattern.prop_map(Value::from)
}

fn list(element: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    prop::collection::vec(element, 0..3).prop_map(Value::from)
}

fn probe() -> impl Strategy<Value = Value> {
    let port = || prop_oneof![(0..70000).prop_map(Value::from), text("http|grpc|nobody")];
    let get = object(vec![
        ("path", odd(text("/(a|b)?(\\?q)?|\\PC*")).boxed()),
        ("port", odd(port()).boxed()),
        ("scheme", odd(text("HTTPS?")).boxed()),
        ("host", prop_oneof![9 => Just(None), 1 => odd(text("a"))].boxed()),
    ]);
    let grpc = object(vec![("port", odd(port()).boxed())]);
    let tcp = object(vec![("port", odd(port()).boxed())]);
    let handler = prop_oneof![
        get.prop_map(|get| ("httpGet", get)),
        grpc.prop_map(|grpc| ("grpc", grpc)),
        tcp.prop_map(|tcp| ("tcpSocket", tcp)),
    ];
    let timing = ["periodSeconds", "failureThreshold", "initialDelaySeconds"];
    (handler, prop::sample::subsequence(timing.to_vec(), 0..=timing.len())).prop_map(
        |((kind, handler), timing)| {
            let fields = timing.into_iter().map(|field| (field.to_owned(), Value::from(3)));
            Value::Object(fields.chain([(kind.to_owned(), handler)]).collect())
        },
    )
}

fn container() -> impl Strategy<Value = Value> {
    let port = object(vec![
        ("containerPort", prop_oneof![30 => (1..65536).prop_map(Value::from).prop_map(Some), 1 => odd((0..70000).prop_map(Value::from))].boxed()),
        ("name", odd(text("http|grpc")).boxed()),
        ("protocol", odd(text("TCP|UDP")).boxed()),
    ]);
    let variable = object(vec![("name", odd(text("DB_CONNECT_SERVICE_HOST|X")).boxed())]);
    object(vec![
        ("name", prop_oneof![60 => text("web|[a-z]").prop_map(Some), 1 => odd(text("\\PC*")), 1 => odd(text("mesh-(proxy|init)|envoy-sidecar"))].boxed()),
        ("ports", odd(list(port)).boxed()),
        ("env", odd(list(variable)).boxed()),
        ("lifecycle", prop_oneof![4 => Just(None), 1 => odd(Just(json!({"postStart": {}})))].boxed()),
        ("readinessProbe", odd(probe()).boxed()),
        ("livenessProbe", odd(probe()).boxed()),
        ("startupProbe", odd(probe()).boxed()),
        (
            "volumeMounts",
            odd(list(object(vec![(
                "mountPath",
                odd(text("/|/consul/connect-inject")).boxed(),
            )])))
            .boxed(),
        ),
        ("unknown~/field", odd(json_value()).boxed()),
    ])
}

/// A policy with which the injector writes everything that it can.
pub(crate) fn generous() -> Policy {
    static POLICY: LazyLock<Policy> = LazyLock::new(read_generous);
    POLICY.clone()
}

fn read_generous() -> Policy {
    let file = tempfile::NamedTempFile::new().unwrap();
    let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    std::io::Write::write_all(&mut file.as_file(), ca.as_bytes()).unwrap();
    policy_of(&[
        "--default-enable-metrics",
        "--default-transparent-proxy",
        "--default-consul-dns",
        "--image-pull-secret=pull,data",
        "--kubernetes-version=1.34",
        "--acl-auth-method=k8s",
        "--consul-ca-cert",
        file.path().to_str().unwrap(),
    ])
}

/// Pods that are injected, denied or skipped, and other JSON.
pub(crate) fn pods() -> impl Strategy<Value = Value> {
    let metadata = object(vec![
        ("annotations", odd(annotations()).boxed()),
        ("labels", odd(object(vec![("app", odd(text("x")).boxed())])).boxed()),
        ("generateName", odd(text("web-")).boxed()),
    ]);
    prop_oneof![
        40 => object(vec![("metadata", odd(metadata).boxed()), ("spec", prop_oneof![30 => spec().prop_map(Some), 1 => odd(json_value())].boxed())]),
        1 => json_value(),
    ]
}

fn annotations() -> impl Strategy<Value = Value> {
    object(vec![
        (annotation::INJECT, prop_oneof![4 => Just(Some("true".into())), 1 => odd(text("true|1|T|false|maybe"))].boxed()),
        (annotation::STATUS, prop_oneof![9 => Just(None), 1 => odd(text("|injected"))].boxed()),
        (
            annotation::SERVICE,
            prop_oneof![9 => Just(Some("web".into())), 3 => odd(text("web|web-2|\\PC*")), 5 => Just(Some("web,admin".into()))]
                .boxed(),
        ),
        (
            annotation::SERVICE_PORT,
            prop_oneof![
                9 => Just(Some("8080".into())), 3 => odd(text("http|8080|0|\\PC*")), 5 => Just(Some("8080,9090".into())),
            ]
            .boxed(),
        ),
        (
            annotation::UPSTREAMS,
            prop_oneof![
                3 => text("db:[1-9][0-9]{0,3}(,auth:1234)?").prop_map(Some),
                1 => odd(text("db:[0-9]{0,6}|prepared_query:\\PC{0,4}:1|\\PC*")),
            ]
            .boxed(),
        ),
        ("consul.hashicorp.com/connect-servce", odd(text("x")).boxed()),
        (annotation::UNDO, prop_oneof![9 => Just(None), 1 => odd(text("\\[\\]|x"))].boxed()),
        (annotation::MOUNT_VOLUME, prop_oneof![5 => Just(None), 1 => odd(text("app"))].boxed()),
        (
            annotation::USER_VOLUMES,
            prop_oneof![5 => Just(None), 1 => odd(text(r#"\[\{"name":"(data|more)"\}\]"#))]
                .boxed(),
        ),
        (
            annotation::SIDECAR_MODE,
            prop_oneof![5 => Just(None), 1 => odd(text("auto|native|container"))].boxed(),
        ),
        (
            annotation::TRANSPARENT_PROXY,
            prop_oneof![2 => Just(None), 1 => odd(text("true|false"))].boxed(),
        ),
        (
            annotation::TRANSPARENT_PROXY_BY,
            prop_oneof![2 => Just(None), 1 => odd(text("cni|init-container"))].boxed(),
        ),
        (
            annotation::EXCLUDE_INBOUND_PORTS,
            prop_oneof![9 => Just(None), 1 => odd(text("http|1,2|\\PC*"))].boxed(),
        ),
        (annotation::SLEEP, prop_oneof![5 => Just(None), 1 => odd(text("0|7"))].boxed()),
        (annotation::TAGS, odd(text("\\PC{0,9}")).boxed()),
        ("consul.hashicorp.com/service-meta-x", odd(text("\\PC{0,9}")).boxed()),
        // Another injector's annotation, sometimes huge.
        ("consul.hashicorp.com/original-pod", prop_oneof![
            9 => Just(None), 1 => (0..200_000_usize).prop_map(|n| Some("{".repeat(n).into()))
        ].boxed()),
        ("prometheus.io/port", prop_oneof![9 => Just(None), 1 => odd(text("1"))].boxed()),
        ("\u{1f600}/~", odd(text("\\PC*")).boxed()),
    ])
}

fn spec() -> impl Strategy<Value = Value> {
    let volume = prop_oneof![30 => text("data|other"), 1 => text("consul-connect-inject-data")];
    let volume = object(vec![("name", odd(volume).boxed())]).boxed();
    object(vec![
        ("containers", prop_oneof![20 => prop::collection::vec(container(), 1..3).prop_map(|c| Some(Value::from(c))), 1 => odd(list(container()))].boxed()),
        ("initContainers", odd(list(container())).boxed()),
        ("volumes", odd(list(volume.clone())).boxed()),
        ("imagePullSecrets", odd(list(volume)).boxed()),
        ("hostNetwork", prop_oneof![9 => Just(None), 1 => odd(any::<bool>().prop_map(Value::from))].boxed()),
        ("unknownField", odd(json_value()).boxed()),
        ("serviceAccountName", prop_oneof![4 => Just(Some("web".into())), 1 => odd(text("app|web|default"))].boxed()),
    ])
}
