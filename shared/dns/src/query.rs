//! A query, and its answer.

use crate::domain::{Domain, LONGEST_LABEL, LONGEST_NAME};

/// A message with one question.
///
/// Source of all offsets: RFC 1035, section 4.1.
#[derive(Clone, Copy, Debug)]
pub struct Query<'m> {
    message: &'m [u8],
    /// End of the question's name.
    name_end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header, or a response. It gets no answer: two servers could
    /// otherwise answer each other forever.
    #[error("not a query")]
    Noise,
    /// The question can't be parsed, or there is not exactly one, which [RFC
    /// 9619](https://www.rfc-editor.org/rfc/rfc9619) forbids.
    #[error("the question is malformed")]
    Question {
        /// The answer: a header with FORMERR.
        answer: [u8; HEADER],
    },
}

/// A response code. Source: RFC 1035, section 4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// The query is malformed.
    FormErr = 1,
    /// The server could not answer.
    ServFail = 2,
}

/// The length of a message's header.
pub const HEADER: usize = 12;

/// Length of type and class, which follow the question's name.
pub(crate) const TYPE_AND_CLASS: usize = 4;

// Bits of the header's third and fourth byte.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const RCODE: u8 = 0x0f;

/// First bytes of an EDNS record: the root's name and type OPT. Source: RFC 6891,
/// section 6.1.2.
const OPT: [u8; 3] = [0, 0, 41];

/// An EDNS record without options that accepts answers of 1,232 bytes over UDP.
const EMPTY_OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

// === impl Query ===

impl<'m> Query<'m> {
    /// Parses a message.
    ///
    /// # Errors
    /// It is not a query with one question.
    pub fn read(message: &'m [u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER] = message.first_chunk().ok_or(Malformed::Noise)?;
        if header[2] & RESPONSE != 0 {
            return Err(Malformed::Noise);
        }
        let malformed = || {
            let mut answer = failed(header, Rcode::FormErr);
            answer[4..].fill(0);
            Malformed::Question { answer }
        };
        let has_one = header[4..6] == [0, 1];
        let name_end = end_of_name(message).filter(|_| has_one).ok_or_else(malformed)?;
        if message.len() < name_end + TYPE_AND_CLASS {
            return Err(malformed());
        }
        Ok(Self { message, name_end })
    }

    pub fn message(self) -> &'m [u8] {
        self.message
    }

    /// Whether the queried name is the domain or under it.
    pub fn is_under(self, domain: &Domain) -> bool {
        domain.has(self.name())
    }

    pub fn with_id(self, id: u16) -> Vec<u8> {
        let mut message = self.message.to_vec();
        set_id(&mut message, id);
        message
    }

    /// Turns a server's answer, received under `id`, into the client's, with the
    /// client's id. `None` if it does not answer this query.
    ///
    /// Servers may change the case of the name. A server that could not read the
    /// question may answer an error without it.
    pub fn answered(self, id: u16, answer: &[u8]) -> Option<Vec<u8>> {
        let header: &[u8; HEADER] = answer.first_chunk()?;
        if header[..2] != id.to_be_bytes() || header[2] & RESPONSE == 0 {
            return None;
        }
        let is_bare_error = header[3] & RCODE != 0 && answer.len() == HEADER;
        if !is_bare_error {
            let end = self.question_end();
            let (name, kind) = answer.get(HEADER..end)?.split_at(self.name().len());
            let same_name = name.eq_ignore_ascii_case(self.name());
            if header[4..6] != [0, 1] || !same_name || kind != &self.message[self.name_end..end] {
                return None;
            }
        }
        let mut answer = answer.to_vec();
        answer[..2].copy_from_slice(&self.message[..2]);
        Some(answer)
    }

    /// An answer without records. It has an EDNS record if the query has one, as RFC
    /// 6891, section 6.1.1 demands.
    pub fn fail(self, code: Rcode) -> Vec<u8> {
        let (question, rest) = self.message.split_at(self.question_end());
        let mut answer = question.to_vec();
        if let Some(header) = answer.first_chunk_mut::<HEADER>() {
            *header = failed(header, code);
            header[6..].fill(0);
            header[11] = u8::from(rest.starts_with(&OPT));
        }
        if rest.starts_with(&OPT) {
            answer.extend(EMPTY_OPT);
        }
        answer
    }

    /// The queried name in wire format.
    fn name(self) -> &'m [u8] {
        &self.message[HEADER..self.name_end]
    }

    fn question_end(self) -> usize {
        self.name_end + TYPE_AND_CLASS
    }
}

/// Whether the next nameserver should be asked, as resolver libraries do after
/// SERVFAIL, NOTIMP and REFUSED.
pub fn is_no_answer(answer: &[u8]) -> bool {
    matches!(answer.get(3).map(|byte| byte & RCODE), None | Some(2 | 4 | 5))
}

/// The header of an answer with this code.
fn failed(header: &[u8; HEADER], code: Rcode) -> [u8; HEADER] {
    let mut answer = *header;
    answer[2] = RESPONSE | header[2] & (OPCODE | RECURSION_DESIRED);
    answer[3] = RECURSION_AVAILABLE | code as u8;
    answer
}

fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// The end of the name behind the header. A question is never compressed: no name
/// precedes it.
pub(crate) fn end_of_name(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        if length > LONGEST_LABEL || at - HEADER > LONGEST_NAME {
            return None;
        }
        if length == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::rdata::{OPT as SimpleOpt, RData};
    use simple_dns::{
        CLASS, Name, OPCODE as SimpleOpcode, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE,
        ResourceRecord, TYPE,
    };

    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = Packet::new_query(0x1234);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let kind = TYPE::from(kind).into();
        let name = Name::new_unchecked(name);
        packet.questions.push(Question::new(name, kind, CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }

    fn answer_to(query: &[u8], id: u16) -> Vec<u8> {
        let mut answer = query.to_vec();
        set_id(&mut answer, id);
        answer[2] |= RESPONSE;
        answer
    }

    #[test]
    fn what_is_not_a_query_gets_no_answer() {
        let query = query("a.consul", 1);
        for length in 0..HEADER {
            assert_eq!(Query::read(&query[..length]).unwrap_err(), Malformed::Noise, "{length}");
        }
        assert_eq!(Query::read(&answer_to(&query, 1)).unwrap_err(), Malformed::Noise);
    }

    #[test]
    fn a_question_that_cannot_be_read_is_answered_with_formerr() {
        let whole = query("a.consul", 1);
        let formerr = |message: &[u8]| match Query::read(message).unwrap_err() {
            Malformed::Question { answer } => answer,
            Malformed::Noise => panic!("no answer to {message:?}"),
        };
        let expected = [0x12, 0x34, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        for length in HEADER..whole.len() {
            assert_eq!(formerr(&whole[..length]), expected, "{length}");
        }
        let mut two = whole.clone();
        two[5] = 2;
        assert_eq!(formerr(&two), expected);
        let mut pointer = whole.clone();
        pointer[HEADER] = 0xc0;
        assert_eq!(formerr(&pointer), expected);
        let mut long = whole[..HEADER].to_vec();
        long.extend([1, b'x'].repeat(128));
        long.extend([0; 5]);
        assert_eq!(formerr(&long), expected);
    }

    #[test]
    fn an_answer_has_the_id_and_the_question() {
        let sent = query("web.virtual.consul", 65);
        let read = Query::read(&sent).unwrap();
        let answer = answer_to(&query("WEB.virtual.Consul", 65), 7);
        let given = read.answered(7, &answer).unwrap();
        assert_eq!(&given[..2], &sent[..2]);
        assert_eq!(given[2..], answer[2..]);

        assert_eq!(read.answered(8, &answer), None);
        assert_eq!(read.answered(7, &read.with_id(7)), None, "a query");
        assert_eq!(read.answered(7, &answer_to(&query("web.virtual.other", 65), 7)), None);
        // `A` and `a` in the bytes of the type are two types.
        assert_eq!(read.answered(7, &answer_to(&query("web.virtual.consul", 97), 7)), None);
        for length in 0..answer.len() {
            assert_eq!(read.answered(7, &answer[..length]), None, "{length}");
        }
    }

    #[test]
    fn an_error_may_come_without_the_question() {
        let sent = query("a.consul", 1);
        let read = Query::read(&sent).unwrap();
        let bare = |code: u8| [0, 7, 0x80, code, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read.answered(7, &bare(1)).unwrap()[..4], [0x12, 0x34, 0x80, 1]);
        assert_eq!(read.answered(7, &bare(0)), None);
    }

    #[test]
    fn a_resolver_library_turns_to_the_next_server_after_these_codes() {
        let with = |code: u8| is_no_answer(&[0, 0, 0x80, 0x80 | code]);
        assert!([2, 4, 5].into_iter().all(with));
        assert!(![0, 1, 3].into_iter().any(with));
        assert!(is_no_answer(b""));
    }

    prop_compose! {
        /// A name of labels with letters in both cases.
        fn names()(labels in prop::collection::vec("[a-zA-Z0-9_-]{1,20}", 1..8)) -> String {
            labels.join(".")
        }
    }

    proptest! {
        #[test]
        fn a_query_is_read_as_another_library_writes_it(
            name in names(), kind in prop::sample::select(vec![1, 12, 16, 28, 33, 65]), edns: bool, id: u16,
        ) {
            let mut packet = Packet::new_query(id);
            packet.set_flags(PacketFlag::RECURSION_DESIRED);
            let kind = TYPE::from(kind);
            let question = Name::new(&name).unwrap();
            packet.questions.push(Question::new(question, kind.into(), CLASS::IN.into(), false));
            if edns {
                *packet.opt_mut() = Some(SimpleOpt { opt_codes: vec![], udp_packet_size: 1400, version: 0 });
            }
            let bytes = packet.build_bytes_vec().unwrap();
            let read = Query::read(&bytes).unwrap();
            prop_assert_eq!(read.question_end() + if edns { EMPTY_OPT.len() } else { 0 }, bytes.len());

            // Under its own last label, and under no other.
            let last: Domain = name.rsplit('.').next().unwrap().to_uppercase().parse().unwrap();
            prop_assert!(read.is_under(&last));
            let other: Domain = format!("x{last}").parse().unwrap();
            prop_assert!(!read.is_under(&other));

            // The other library reads what is answered.
            let failed = read.fail(Rcode::ServFail);
            let failed = Packet::parse(&failed).unwrap();
            prop_assert_eq!(failed.id(), id);
            prop_assert_eq!(failed.rcode(), RCODE::ServerFailure);
            prop_assert_eq!(failed.opcode(), SimpleOpcode::StandardQuery);
            prop_assert!(failed.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
            prop_assert_eq!(failed.questions.len(), 1);
            prop_assert_eq!(failed.questions[0].qname.to_string(), name);
            prop_assert_eq!(failed.questions[0].qtype, QTYPE::TYPE(kind));
            prop_assert_eq!(failed.questions[0].qclass, QCLASS::CLASS(CLASS::IN));
            prop_assert_eq!(failed.opt().is_some(), edns);
        }

        #[test]
        fn an_answer_of_another_library_is_passed_on_whole(name in names(), id: u16) {
            let sent = query(&name, 1);
            let mut packet = Packet::new_reply(id);
            let question = || Name::new(&name).unwrap();
            packet.questions.push(Question::new(question(), TYPE::A.into(), CLASS::IN.into(), false));
            let record = RData::A(simple_dns::rdata::A { address: 0xf000_0001 });
            packet.answers.push(ResourceRecord::new(question(), CLASS::IN, 0, record));
            let answer = packet.build_bytes_vec_compressed().unwrap();
            let given = Query::read(&sent).unwrap().answered(id, &answer).unwrap();
            prop_assert_eq!(&given[..2], &[0x12, 0x34]);
            prop_assert_eq!(&given[2..], &answer[2..]);
        }

        #[test]
        fn no_message_makes_it_panic(
            start in prop::option::of(names()), noise in prop::collection::vec(any::<u8>(), 0..80),
            at in 0usize..40, answer in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            // Either noise alone, or a query with noise in it.
            let mut message = start.map_or_else(Vec::new, |name| query(&name, 1));
            let at = at.min(message.len());
            message.splice(at..(at + noise.len()).min(message.len()), noise);
            let Ok(read) = Query::read(&message) else { return Ok(()) };
            read.is_under(&"consul".parse().unwrap());
            prop_assert!(read.fail(Rcode::ServFail).len() <= message.len().max(read.question_end()) + EMPTY_OPT.len());
            read.answered(0, &answer);
            // What is read is as the other library reads it, where it reads it at all.
            if let Ok(packet) = Packet::parse(&message) {
                prop_assert_eq!(packet.questions.len(), 1);
                prop_assert_eq!(packet.questions[0].qname.as_bytes().map(|label| label.len() + 1).sum::<usize>() + 1, read.name().len());
            }
        }
    }
}
