//! How fast definition files are read, and how that grows with their length:
//! `cargo bench --package definition`. The floor is JSON read without a look at
//! what it says.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use definition::Format;

/// So many services, with what a usual one has.
fn document(services: usize, format: Format) -> String {
    let mut text = String::new();
    for index in 0..services {
        // Writing to a string can't fail.
        let _ = write!(
            text,
            "services {{\n  name = \"web-{index}\"\n  port = 8080\n  tags = [\"v1\", \"primary\"]\n  \
             meta {{ version = \"1.2.3\" team = \"shop\" }}\n  \
             check {{ name = \"alive\" http = \"http://localhost:8080/health\" interval = \"10s\" }}\n  \
             connect {{\n    sidecar_service {{\n      proxy {{\n        upstreams {{ destination_name = \"db\" \
             local_bind_port = 5432 }}\n      }}\n    }}\n  }}\n}}\n"
        );
    }
    if format == Format::Hcl {
        return text;
    }
    let definitions = definition::parse("bench.hcl", Format::Hcl, &text).expect("it is a good one");
    definition::print(definitions.iter().map(|definition| &definition.service), Format::Json)
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    group.sample_size(20).measurement_time(Duration::from_secs(1));
    group.warm_up_time(Duration::from_millis(300));
    for services in [4, 16, 64, 256, 1024] {
        for (name, format) in [("hcl", Format::Hcl), ("json", Format::Json)] {
            let text = document(services, format);
            let bytes = u64::try_from(text.len()).expect("it fits");
            group.throughput(Throughput::Bytes(bytes));
            let id = BenchmarkId::new(name, text.len());
            group.bench_with_input(id, &text, |bencher, text| {
                bencher.iter(|| definition::parse("bench", format, black_box(text)));
            });
        }
        let text = document(services, Format::Json);
        group.throughput(Throughput::Bytes(u64::try_from(text.len()).expect("it fits")));
        group.bench_with_input(BenchmarkId::new("value", text.len()), &text, |bencher, text| {
            bencher.iter(|| serde_json::from_str::<serde_json::Value>(black_box(text)));
        });
    }
    group.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
