//! Reads a client's WebSocket frames (RFC 6455) into whole messages.
//!
//! The codec of actix-http refuses a long frame only when all of it has arrived, and returns fragments one by one.
//! So the length is read from the frame's header first, and the limit applies to the assembled message.

use actix_http::ws::{Codec, Frame, Item, ProtocolError};
use actix_web::{error::PayloadError, web::Bytes};
use bytes::BytesMut;
use cc_executor_actors::{
    close::{CloseCode, CloseReason},
    session::phase::Incoming,
};
use futures_util::{Stream, StreamExt, stream};
use tokio_util::codec::Decoder;

/// The largest number of frames in one message, because empty fragments never reach the limit of bytes.
const MAX_FRAGMENTS: usize = 1_024;

/// The longest payload of a control frame, in bytes (RFC 6455 section 5.5).
const MAX_CONTROL: u64 = 125;

/// Decodes the frames of one client.
pub struct FrameReader<P> {
    payload: P,
    input: BytesMut,
    codec: Codec,
    limit: usize,
    message: Option<PartialMessage>,
}

/// A message whose last fragments have not arrived.
struct PartialMessage {
    text: BytesMut,
    n_fragments: usize,
}

impl<P> FrameReader<P>
where
    P: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    /// A reader that accepts messages of at most this many bytes.
    pub fn new(payload: P, limit: usize) -> Self {
        FrameReader { payload, input: BytesMut::new(), codec: Codec::new().max_size(limit), limit, message: None }
    }

    /// The messages until the connection ends or a fault occurs. After a fault the rest is read and discarded, so that
    /// the close frame reaches a client that is still sending.
    pub fn into_stream(self) -> impl Stream<Item = Incoming>
    where
        P: 'static,
    {
        stream::unfold(Some((self, false)), |state| async {
            let (mut reader, faulty) = state?;
            if faulty {
                reader.discard().await;
                return Some((Incoming::Gone, None));
            }
            match reader.next().await {
                Incoming::Gone => Some((Incoming::Gone, None)),
                fault @ Incoming::Fault(_) => Some((fault, Some((reader, true)))),
                incoming => Some((incoming, Some((reader, false)))),
            }
        })
    }

    async fn discard(&mut self) {
        self.input = BytesMut::new();
        while let Some(Ok(_)) = self.payload.next().await {}
    }

    async fn next(&mut self) -> Incoming {
        loop {
            match self.decode() {
                Ok(Some(incoming)) => return incoming,
                Ok(None) => {}
                Err(reason) => return Incoming::Fault(reason),
            }
            match self.payload.next().await {
                Some(Ok(bytes)) => self.input.extend_from_slice(&bytes),
                Some(Err(_)) | None => return Incoming::Gone,
            }
        }
    }

    /// The next message in the bytes that were read.
    fn decode(&mut self) -> Result<Option<Incoming>, CloseReason> {
        loop {
            self.check_header()?;
            let Some(frame) = self.codec.decode(&mut self.input).map_err(|error| fault_of(&error))? else {
                if self.input.is_empty() {
                    // An idle session holds no buffer.
                    self.input = BytesMut::new();
                }
                return Ok(None);
            };
            if let Some(incoming) = self.take(frame)? {
                return Ok(Some(incoming));
            }
        }
    }

    /// Checks the header at the front before the codec waits for the rest of the frame.
    fn check_header(&self) -> Result<(), CloseReason> {
        let Some(&[first, second]) = self.input.first_chunk::<2>() else { return Ok(()) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let declared = match second & 0x7f {
            126 => {
                self.input.get(2..4).and_then(|len| len.try_into().ok()).map(|len| u64::from(u16::from_be_bytes(len)))
            }
            127 => self.input.get(2..10).and_then(|len| len.try_into().ok()).map(u64::from_be_bytes),
            short => Some(u64::from(short)),
        };
        if opcode & 0x08 != 0 {
            if !fin {
                return Err(protocol("a control frame must not be fragmented"));
            }
            if matches!(second & 0x7f, 126 | 127) || declared.is_some_and(|len| len > MAX_CONTROL) {
                return Err(protocol("a control frame holds at most 125 bytes"));
            }
        }
        if opcode == 8 && declared == Some(1) {
            return Err(protocol("a close frame has no body of 1 byte"));
        }
        if opcode == 2 {
            return Err(unsupported());
        }
        let so_far = self.message.as_ref().map_or(0, |message| message.text.len());
        match declared {
            Some(len) if len > (self.limit - so_far) as u64 => Err(too_big(format!(
                "a message has at most {} bytes; this one would have {}",
                self.limit,
                len.saturating_add(so_far as u64)
            ))),
            _ => Ok(()),
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Incoming>, CloseReason> {
        match frame {
            Frame::Ping(payload) => Ok(Some(Incoming::Ping(payload))),
            Frame::Pong(payload) => Ok(Some(Incoming::Pong(payload))),
            Frame::Close(_) => Ok(Some(Incoming::Close)),
            Frame::Binary(_) | Frame::Continuation(Item::FirstBinary(_)) => Err(unsupported()),
            Frame::Text(_) if self.message.is_some() => {
                Err(protocol("a new message began before the last one was complete"))
            }
            Frame::Text(text) => text_message(&text).map(Some),
            Frame::Continuation(Item::FirstText(text)) => {
                self.message = Some(PartialMessage { text: BytesMut::from(&text[..]), n_fragments: 1 });
                Ok(None)
            }
            Frame::Continuation(Item::Continue(text)) => {
                self.assemble(&text)?;
                Ok(None)
            }
            Frame::Continuation(Item::Last(text)) => {
                self.assemble(&text)?;
                let message = self.message.take().ok_or_else(|| protocol("the end of a message that never began"))?;
                text_message(&message.text).map(Some)
            }
        }
    }

    fn assemble(&mut self, text: &[u8]) -> Result<(), CloseReason> {
        let message = self.message.as_mut().ok_or_else(|| protocol("the rest of a message that never began"))?;
        message.n_fragments += 1;
        if message.n_fragments > MAX_FRAGMENTS {
            return Err(too_big(format!("a message comes in at most {MAX_FRAGMENTS} fragments")));
        }
        message.text.extend_from_slice(text);
        Ok(())
    }
}

fn text_message(text: &[u8]) -> Result<Incoming, CloseReason> {
    match std::str::from_utf8(text) {
        Ok(text) => Ok(Incoming::Text(text.to_owned())),
        Err(error) => Err(CloseReason::new(
            CloseCode::NotUtf8,
            format!("a text message is not UTF-8 at byte {}", error.valid_up_to()),
        )),
    }
}

fn fault_of(error: &ProtocolError) -> CloseReason {
    match error {
        ProtocolError::Overflow => too_big("a message over the limit".to_owned()),
        error => protocol(&format!("a frame that WebSocket does not allow: {error}")),
    }
}

fn protocol(text: &str) -> CloseReason {
    CloseReason::new(CloseCode::Protocol, text)
}

fn too_big(text: String) -> CloseReason {
    CloseReason::new(CloseCode::TooBig, text)
}

fn unsupported() -> CloseReason {
    CloseReason::new(CloseCode::Unsupported, "messages are text: binary is not understood")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            0..=125 => out.push(0x80 | payload.len() as u8),
            126..=0xffff => {
                out.push(0x80 | 126);
                out.extend((payload.len() as u16).to_be_bytes());
            }
            _ => {
                out.push(0x80 | 127);
                out.extend((payload.len() as u64).to_be_bytes());
            }
        }
        out.extend(MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    async fn read(pieces: Vec<Vec<u8>>, limit: usize) -> Vec<Incoming> {
        let payload = stream::iter(pieces.into_iter().map(|piece| Ok(Bytes::from(piece))));
        FrameReader::new(payload, limit).into_stream().collect().await
    }

    fn read_all(wire: Vec<u8>, limit: usize) -> Vec<Incoming> {
        futures_util::FutureExt::now_or_never(read(vec![wire], limit)).expect("everything is there")
    }

    fn fault(wire: Vec<u8>) -> u16 {
        match read_all(wire, 1_000).first() {
            Some(Incoming::Fault(reason)) => reason.code.into(),
            other => panic!("not a fault: {other:?}"),
        }
    }

    #[test]
    fn each_breach_has_its_close_code() {
        let header = |first: u8, len: u64| {
            let mut out = vec![first, 0x80 | 127];
            out.extend(len.to_be_bytes());
            out
        };
        assert_eq!(fault(frame(0x82, b"x")), 1003, "binary");
        assert_eq!(fault(frame(0x02, b"x")), 1003, "the first fragment of a binary message");
        assert_eq!(fault(frame(0x81, b"\xff")), 1007, "not UTF-8");
        assert_eq!(
            fault([frame(0x01, b"\xe2\x82"), frame(0x80, b"")].concat()),
            1007,
            "a character that ends too early"
        );
        assert_eq!(fault(header(0x81, 1 << 30)), 1009, "1 GiB declared and nothing sent");
        assert_eq!(fault(header(0x81, u64::MAX)), 1009, "the longest length there is");
        assert_eq!(fault(frame(0x81, &[b'x'; 1_001])), 1009, "one byte over the limit");
        assert_eq!(
            fault([frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 401])].concat()),
            1009,
            "over the limit in two frames"
        );
        assert_eq!(
            fault([vec![frame(0x01, b"")], vec![frame(0x00, b""); 10_000]].concat().concat()),
            1009,
            "10 000 fragments"
        );
        assert_eq!(fault(vec![0x81, 0x01, b'x']), 1002, "not masked");
        assert_eq!(fault(frame(0xc1, b"x")), 1002, "a reserved bit");
        assert_eq!(fault(frame(0x83, b"x")), 1002, "a reserved opcode");
        assert_eq!(fault(frame(0x09, b"x")), 1002, "a fragmented ping");
        assert_eq!(fault(frame(0x89, &[b'x'; 126])), 1002, "a long ping");
        assert_eq!(fault(frame(0x80, b"x")), 1002, "a continuation of nothing");
        assert_eq!(fault([frame(0x01, b"x"), frame(0x81, b"y")].concat()), 1002, "a message inside a message");
        assert_eq!(fault(frame(0x88, b"x")), 1002, "a close frame of one byte");
    }

    proptest! {
        #[test]
        fn messages_come_whole_however_they_are_cut(
            messages in prop::collection::vec(("[a-zé😀]{0,300}", 1usize..5), 1..6),
            piece in 1usize..50,
        ) {
            let mut wire = Vec::new();
            for (text, n_fragments) in &messages {
                let size = text.len().div_ceil(*n_fragments).max(1);
                let fragments: Vec<_> = text.as_bytes().chunks(size).collect();
                let fragments = if fragments.is_empty() { vec![&b""[..]] } else { fragments };
                for (at, fragment) in fragments.iter().enumerate() {
                    let opcode = if at == 0 { 1 } else { 0 };
                    let fin = if at + 1 == fragments.len() { 0x80 } else { 0 };
                    wire.extend(frame(fin | opcode, fragment));
                    wire.extend(frame(0x89, b"ping"));
                }
            }
            let pieces = wire.chunks(piece).map(<[u8]>::to_vec).collect();
            let got = futures_util::FutureExt::now_or_never(read(pieces, 10_000)).unwrap();
            let texts: Vec<_> = got.iter().filter_map(|incoming| match incoming {
                Incoming::Text(text) => Some(text.clone()),
                _ => None,
            }).collect();
            prop_assert_eq!(texts, messages.into_iter().map(|(text, _)| text).collect::<Vec<_>>());
            prop_assert_eq!(got.last(), Some(&Incoming::Gone));
        }

        #[test]
        fn garbage_never_panics(wire in prop::collection::vec(any::<u8>(), 0..300)) {
            read_all(wire, 1_000);
        }
    }
}
