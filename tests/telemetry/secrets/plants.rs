//! Secrets that are planted, and how they are found again: whole or by halves, as they are and in the usual disguises.

use std::collections::HashMap;
use std::fmt::Write as _;

/// All that was planted.
#[derive(Default)]
pub(crate) struct Plants(Vec<Plant>);

struct Plant {
    place: String,
    bytes: Vec<u8>,
}

/// A secret that stands where none may.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it was planted.
    pub(crate) planted: String,
    /// In which disguise it was found.
    pub(crate) form: &'static str,
    /// What stands around it.
    pub(crate) around: String,
}

impl Plants {
    /// A new secret of letters and digits, to be planted there.
    pub(crate) fn text(&mut self, place: &str) -> String {
        const DIGITS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        let digit = |_| char::from(DIGITS[rand::random_range(0..DIGITS.len())]);
        let text: String = (0..LENGTH).map(digit).collect();
        self.known(place, text.as_bytes());
        text
    }

    /// A new secret as it stands in a binary field: in base64.
    pub(crate) fn binary(&mut self, place: &str) -> String {
        let text = base64(self.text(place).as_bytes());
        self.known(place, text.as_bytes());
        text
    }

    /// A new secret of any bytes.
    pub(crate) fn bytes(&mut self, place: &str) -> Vec<u8> {
        let bytes: Vec<u8> = (0..LENGTH).map(|_| rand::random()).collect();
        self.known(place, &bytes);
        bytes
    }

    /// A new secret of 256 bits in hex, as join tokens are.
    pub(crate) fn token(&mut self, place: &str) -> String {
        let bits: [u8; 32] = rand::random();
        self.known(place, &bits);
        let text = hex(&bits);
        self.known(place, text.as_bytes());
        text
    }

    /// A secret that is there already.
    pub(crate) fn known(&mut self, place: &str, bytes: &[u8]) {
        self.0.push(Plant {
            place: place.to_owned(),
            bytes: bytes.to_owned(),
        });
    }

    /// How many there are, in as many places.
    pub(crate) fn len(&self) -> usize {
        let mut places: Vec<_> = self.0.iter().map(|plant| &plant.place).collect();
        places.sort();
        places.dedup();
        places.len()
    }

    /// Whether this was heard whole, where it was to arrive.
    pub(crate) fn arrived(&self, place: &str, heard: &[u8]) -> bool {
        let mut plants = self.0.iter().filter(|plant| plant.place == place);
        plants.any(|plant| heard.windows(plant.bytes.len()).any(|window| window == plant.bytes))
    }

    /// What finds them all in one pass.
    pub(crate) fn search(&self) -> Search {
        let mut needles = HashMap::<[u8; WINDOW], Vec<Needle>>::new();
        for plant in &self.0 {
            let half = plant.bytes.len() / 2;
            for part in [&plant.bytes[..half], &plant.bytes[half..]] {
                for (form, text) in disguises(part) {
                    let text = text.to_ascii_lowercase();
                    let Some(first) = text.first_chunk() else { continue };
                    needles.entry(*first).or_default().push(Needle {
                        place: plant.place.clone(),
                        form,
                        text,
                    });
                }
            }
        }
        Search(needles)
    }
}

/// Needles by how they begin, in lower case.
pub(crate) struct Search(HashMap<[u8; WINDOW], Vec<Needle>>);

struct Needle {
    place: String,
    form: &'static str,
    text: Vec<u8>,
}

impl Search {
    /// All secrets that stand there, each once.
    pub(crate) fn of(&self, hay: &[u8]) -> Vec<Found> {
        let hay = hay.to_ascii_lowercase();
        let mut found = Vec::<Found>::new();
        for (at, window) in hay.windows(WINDOW).enumerate() {
            let Some(needles) = window.first_chunk().and_then(|window| self.0.get(window)) else {
                continue;
            };
            for needle in needles.iter().filter(|needle| hay[at..].starts_with(&needle.text)) {
                if found.iter().any(|found| found.planted == needle.place) {
                    continue;
                }
                let around = &hay[at.saturating_sub(200)..hay.len().min(at + 100)];
                found.push(Found {
                    planted: needle.place.clone(),
                    form: needle.form,
                    around: String::from_utf8_lossy(around).into_owned(),
                });
            }
        }
        found
    }
}

fn disguises(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let list: Vec<_> = bytes.iter().map(u8::to_string).collect();
    let mut all = vec![
        ("as it is", bytes.to_owned()),
        ("in hex", hex(bytes).into_bytes()),
        ("as a list of numbers", list.join(", ").into_bytes()),
        ("escaped", bytes.escape_ascii().to_string().into_bytes()),
    ];
    for before in 0..3 {
        let text = base64(&[&vec![0; before][..], bytes].concat());
        // Digits that it shares with its neighbours are left out.
        let text = &text[(8 * before).div_ceil(6)..8 * (before + bytes.len()) / 6];
        all.push(("in base64", text.to_owned().into_bytes()));
        let url = text.replace('+', "-").replace('/', "_");
        all.push(("in base64 for URLs", url.into_bytes()));
    }
    all
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// With no padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

/// Bytes of a secret.
const LENGTH: usize = 24;
/// What a needle is looked up by.
const WINDOW: usize = 8;

#[test]
fn a_secret_is_found_in_every_disguise_and_by_half_of_it() {
    let mut plants = Plants::default();
    let text = plants.text("a text");
    let bytes = plants.bytes("bytes");
    let search = plants.search();
    let within = |what: &[u8]| [b"some ".as_slice(), what, b" more"].concat();
    for (of, planted) in [(text.as_bytes(), "a text"), (&bytes[..], "bytes")] {
        for hay in [
            within(of),
            within(&of[..LENGTH / 2]),
            within(&of[LENGTH / 2..]),
            within(&of.to_ascii_uppercase()),
            within(hex(of).to_uppercase().as_bytes()),
            within(format!("{of:?}").as_bytes()),
            within(base64(of).as_bytes()),
            within(base64(&within(of)).as_bytes()),
            within(base64(&[b"x", of].concat()).as_bytes()),
            within(of.escape_ascii().to_string().as_bytes()),
        ] {
            let found = search.of(&hay);
            assert!(
                found.len() == 1 && found[0].planted == planted,
                "{found:?} in {}",
                hay.escape_ascii()
            );
        }
    }
    assert!(search.of(b"nothing of all that").is_empty());
    assert_eq!(base64(b"a secret"), "YSBzZWNyZXQ");
    assert!(plants.arrived("a text", &within(text.as_bytes())) && !plants.arrived("bytes", &within(text.as_bytes())));
}
