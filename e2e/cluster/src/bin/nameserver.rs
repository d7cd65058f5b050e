//! The cluster DNS of a test: `nameserver LISTEN FILE` answers UDP queries for the IPv4
//! addresses of the names in a file. Each line of the file is a name and its addresses.
//! The file is read at each query; a name that it lacks does not exist.

use std::net::{Ipv4Addr, UdpSocket};

use harness::Result;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, file] = args.as_slice() else { return Err("expected LISTEN FILE".into()) };
    let socket =
        UdpSocket::bind(listen).map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let mut buffer = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let names = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(answer) = answer(&buffer[..length], &names) {
            // The client may be gone.
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// The answer to a query. Source of all offsets: RFC 1035, section 4.1.
fn answer(query: &[u8], names: &str) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = query.get(at..at + 4)?;
    let name = labels.join(".");
    let line = names.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.filter_map(|word| word.parse().ok()).collect())
    });
    let addresses: Vec<Ipv4Addr> = line.clone().unwrap_or_default();
    let addresses = if kind == [0, 1, 0, 1] { addresses } else { Vec::new() };
    let code = if line.is_some() { 0 } else { 3 };
    let mut answer = query.get(..at + 4)?.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80 | code;
    answer[6..12].fill(0);
    answer[7] = u8::try_from(addresses.len()).ok()?;
    for address in addresses {
        // The name of the question, type A, class IN, TTL 5 s.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
