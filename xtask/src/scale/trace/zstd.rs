//! A reader over zstd frames, one after another, that also checks their checksums.
//!
//! *Why not `ruzstd::StreamingDecoder`*: it stops after the first frame, so that a concatenated file would look
//! truncated and bytes behind the frame would go unseen, and it leaves the checksum to its caller.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const FRAME: u32 = 0xFD2F_B528;
/// Frames of user data that a decoder skips: 0x184D2A50 to 0x184D2A5F.
const SKIPPABLE: u32 = 0x184D_2A50;

/// The window that the `zstd` program accepts by default: `zstd --ultra -22`, but not `--long=28`.
const MAX_WINDOW_BYTES: u64 = 128 << 20;

/// How much to decode before handing bytes on.
const CHUNK_BYTES: usize = 1 << 17;

/// Whether a file that starts with these bytes is compressed.
pub(super) fn starts_frame(bytes: &[u8]) -> bool {
    let Some(&[a, b, c, d]) = bytes.get(..4) else {
        return false;
    };
    let magic = u32::from_le_bytes([a, b, c, d]);
    magic == FRAME || magic & !0xF == SKIPPABLE
}

/// An empty raw block with the last-block bit, and room for a checksum: ends a frame that was cut short.
const END_OF_FRAME: [u8; 7] = [1, 0, 0, 0, 0, 0, 0];

pub(super) struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
    /// Bytes that the current frame has given so far.
    given: u64,
    /// What ended the frame before its time; told once the bytes before it have been handed on.
    fault: Option<String>,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW_BYTES);
        Self {
            source,
            decoder,
            in_frame: false,
            given: 0,
            fault: None,
        }
    }

    /// Enters the next frame; false at the end of the file.
    fn next_frame(&mut self) -> Result<bool, String> {
        while !self
            .source
            .fill_buf()
            .map_err(|e| e.to_string())?
            .is_empty()
        {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.given = 0;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut rest = (&mut self.source).take(u64::from(length));
                    let skipped =
                        io::copy(&mut rest, &mut io::sink()).map_err(|e| e.to_string())?;
                    if skipped < u64::from(length) {
                        return Err("the file ends inside a skippable frame".to_owned());
                    }
                }
                Err(FrameDecoderError::ReadFrameHeaderError(
                    ReadFrameHeaderError::BadMagicNumber(_),
                )) => return Err("bytes after the end of the zstd frame".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(false)
    }

    fn decode(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        loop {
            if self.decoder.can_collect() > 0 {
                let got = self.decoder.read(buffer).map_err(|e| e.to_string())?;
                self.given += got as u64;
                return Ok(got);
            }
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            if self.in_frame && self.decoder.is_finished() {
                self.in_frame = false;
                self.check_sums()?;
            }
            if !self.in_frame {
                self.in_frame = self.next_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            let strategy = BlockDecodingStrategy::UptoBytes(CHUNK_BYTES);
            if let Err(error) = self.decoder.decode_blocks(&mut self.source, strategy) {
                self.cut_short(error.to_string())?;
            }
        }
    }

    /// Ends the frame where it broke. The decoder holds back a window of bytes, often the whole file, until the
    /// frame's end; they must come out first, because how many there are tells which record is the first that is
    /// lost.
    fn cut_short(&mut self, error: String) -> Result<(), String> {
        let at_end = self.source.fill_buf().is_ok_and(<[u8]>::is_empty);
        let fault = if at_end {
            "the file ends inside a zstd frame".to_owned()
        } else {
            error
        };
        let end = BlockDecodingStrategy::UptoBlocks(1);
        if self.decoder.decode_blocks(&END_OF_FRAME[..], end).is_err() {
            return Err(fault);
        }
        self.fault = Some(fault);
        Ok(())
    }

    /// What the finished frame says of its content, where it says anything: the length (0: unknown) and the checksum.
    fn check_sums(&self) -> Result<(), String> {
        let said = self.decoder.content_size();
        if said != 0 && said != self.given {
            return Err(format!("a frame of {} bytes says {said}", self.given));
        }
        let stored = self.decoder.get_checksum_from_data();
        match (stored, self.decoder.get_calculated_checksum()) {
            (Some(stored), Some(found)) if stored != found => {
                Err(format!("checksum {found:08x}, the file has {stored:08x}"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decode(buffer).map_err(|what| corrupt(&what))
    }
}

fn corrupt(what: &str) -> io::Error {
    // Some of the decoder's messages run over several lines.
    let words: Vec<&str> = what.split_whitespace().collect();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("corrupt zstd data: {}", words.join(" ")),
    )
}
