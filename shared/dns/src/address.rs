//! The IPv4 addresses of a name: the question, and what an answer says.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::domain::Domain;
use crate::query::{HEADER, TYPE_AND_CLASS, end_of_name};

/// What an answer says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// There is such a name, with these addresses, which may be none.
    Of {
        /// Each once.
        addresses: Vec<Ipv4Addr>,
        /// For how long they hold.
        ttl: Duration,
    },
    /// There is no such name.
    NoName,
}

/// How a query begins whose answer may be asked of others: id 0, one question.
const ASK: [u8; HEADER] = [0, 0, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// Type A, class IN. Source: RFC 1035, section 3.2.
const A: [u8; 4] = [0, 1, 0, 1];

const RECURSION_DESIRED: u8 = 0x01;
const TRUNCATED: u8 = 0x02;
const RCODE: u8 = 0x0f;
const NO_NAME: u8 = 3;

/// The two bits that make a length a pointer to a name elsewhere in the message.
const POINTER: u8 = 0xc0;

/// Type, class, TTL and length of a record, behind its name.
const RECORD: usize = 10;

/// The question.
pub fn question(name: &Domain) -> Vec<u8> {
    [&ASK, name.encoded(), &A].concat()
}

/// Reads an answer to that question. None if it is an error, is truncated or can't be
/// read. Whose addresses they are is not looked at: they may be another name's, to
/// which an alias leads.
pub fn read(answer: &[u8]) -> Option<Addresses> {
    let header: &[u8; HEADER] = answer.first_chunk()?;
    if header[2] & TRUNCATED != 0 {
        return None;
    }
    match header[3] & RCODE {
        0 => {}
        NO_NAME => return Some(Addresses::NoName),
        _ => return None,
    }
    let mut rest = answer.get(end_of_name(answer)? + TYPE_AND_CLASS..)?;
    let mut addresses = Vec::new();
    let mut ttl = u32::MAX;
    for _ in 0..u16::from_be_bytes([header[6], header[7]]) {
        rest = behind_name(rest)?;
        let (head, data) = rest.split_first_chunk::<RECORD>()?;
        let [k0, k1, c0, c1, t0, t1, t2, t3, l0, l1] = *head;
        let (data, next) = data.split_at_checked(u16::from_be_bytes([l0, l1]).into())?;
        rest = next;
        ttl = ttl.min(u32::from_be_bytes([t0, t1, t2, t3]));
        if [k0, k1, c0, c1] == A {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    let ttl = if addresses.is_empty() { 0 } else { ttl };
    Some(Addresses::Of { addresses, ttl: Duration::from_secs(ttl.into()) })
}

/// What is behind the name at the beginning.
fn behind_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let (length, rest) = bytes.split_first()?;
        match *length {
            0 => return Some(rest),
            length if length & POINTER == POINTER => return rest.get(1..),
            length => bytes = rest.get(length.into()..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::rdata::{A as SimpleA, AAAA, CNAME, RData};
    use simple_dns::{
        CLASS, Name, Packet, PacketFlag, Question, RCODE as SimpleRcode, ResourceRecord, TYPE,
    };

    use super::*;

    const NAME: &str = "db.shop.svc.cluster.local";

    fn record(ttl: u32, data: RData<'static>) -> ResourceRecord<'static> {
        ResourceRecord::new(Name::new_unchecked(NAME), CLASS::IN, ttl, data)
    }

    fn a(address: [u8; 4]) -> RData<'static> {
        RData::A(SimpleA { address: u32::from_be_bytes(address) })
    }

    fn answer(records: Vec<ResourceRecord<'static>>) -> Packet<'static> {
        let mut answer = Packet::new_reply(0);
        let name = Name::new_unchecked(NAME);
        answer.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
        answer.answers = records;
        answer
    }

    fn of(addresses: &[[u8; 4]], ttl: u64) -> Addresses {
        let addresses = addresses.iter().copied().map(Ipv4Addr::from).collect();
        Addresses::Of { addresses, ttl: Duration::from_secs(ttl) }
    }

    #[test]
    fn the_question_asks_for_addresses() {
        let question = question(&NAME.parse().unwrap());
        let packet = Packet::parse(&question).unwrap();
        assert!(packet.has_flags(PacketFlag::RECURSION_DESIRED));
        assert_eq!(packet.questions[0].qname.to_string(), NAME);
        assert_eq!(packet.questions[0].qtype, TYPE::A.into());
    }

    #[test]
    fn the_addresses_of_an_answer_are_read_behind_aliases() {
        let alias = || RData::CNAME(CNAME(Name::new_unchecked("other.svc.cluster.local")));
        let v6 = || RData::AAAA(AAAA { address: 1 });
        for (records, expected) in [
            (vec![record(30, a([10, 96, 0, 1]))], of(&[[10, 96, 0, 1]], 30)),
            (
                vec![record(5, alias()), record(30, v6()), record(30, a([10, 96, 0, 1]))],
                of(&[[10, 96, 0, 1]], 5),
            ),
            (
                vec![record(9, a([2; 4])), record(9, a([1; 4])), record(9, a([2; 4]))],
                of(&[[1; 4], [2; 4]], 9),
            ),
            (vec![record(5, v6())], of(&[], 0)),
            (vec![], of(&[], 0)),
        ] {
            for compressed in [false, true] {
                let answer = answer(records.clone());
                let bytes = if compressed {
                    answer.build_bytes_vec_compressed()
                } else {
                    answer.build_bytes_vec()
                };
                assert_eq!(read(&bytes.unwrap()), Some(expected.clone()));
            }
        }
    }

    #[test]
    fn an_error_says_nothing_but_that_there_is_no_such_name() {
        for (code, expected) in [
            (SimpleRcode::NameError, Some(Addresses::NoName)),
            (SimpleRcode::ServerFailure, None),
            (SimpleRcode::Refused, None),
        ] {
            let mut answer = answer(vec![]);
            *answer.rcode_mut() = code;
            assert_eq!(read(&answer.build_bytes_vec().unwrap()), expected);
        }
        let mut truncated = answer(vec![record(9, a([1; 4]))]);
        truncated.set_flags(PacketFlag::TRUNCATION);
        assert_eq!(read(&truncated.build_bytes_vec().unwrap()), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0_usize..200,
            (at, byte) in (0_usize..200, any::<u8>()),
        ) {
            let _ = read(&bytes);
            let mut answer = answer(vec![record(30, a([1; 4])), record(30, a([2; 4]))])
                .build_bytes_vec_compressed()
                .unwrap();
            if let Some(place) = answer.get_mut(at) {
                *place = byte;
            }
            answer.truncate(cut);
            let _ = read(&answer);
        }
    }
}
