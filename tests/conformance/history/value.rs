//! Values that say who wrote them, which save that was, and whether they are whole.

/// One save of one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Save {
    pub writer: u16,
    pub number: u32,
}

impl std::fmt::Display for Save {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "w{}:{}", self.writer, self.number)
    }
}

fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, b| (sum ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// No two writers' lines are of one length, up to so many: in kv an old version is known by its
/// size alone.
pub const WRITERS: u32 = 32;

/// The line of a save, with its newline. Lengths differ from save to save, up to about `longest`.
pub fn line(save: Save, longest: u32) -> String {
    let len = save.number.wrapping_mul(397).wrapping_add(u32::from(save.writer) * 131) % longest;
    let letter = |at: u32| char::from(b'a' + ((at + save.number) % 26) as u8);
    let start = format!("{} {} x", save.writer, save.number);
    let over = (start.len() as u32 + len) % WRITERS;
    let len = len + (u32::from(save.writer) + WRITERS - over) % WRITERS;
    let text: String = start.chars().chain((0..len).map(letter)).collect();
    format!("{text} {:016x}\n", checksum(&text))
}

/// The saves whose lines these bytes are; `None` if anything else is in them, or nothing.
pub fn parse(bytes: &[u8]) -> Option<Vec<Save>> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    text.split('\n').map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Save> {
    let (text, sum) = line.rsplit_once(' ')?;
    if u64::from_str_radix(sum, 16).ok()? != checksum(text) {
        return None;
    }
    let mut words = text.split(' ');
    let save = Save { writer: words.next()?.parse().ok()?, number: words.next()?.parse().ok()? };
    Some(save)
}

/// Random numbers that are the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    pub fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
