//! What a stranger wrote, made fit for a line, a terminal and a backend.

use portunus_logbook::escape;

/// The method that a `:path` names, without its slash. A query is none of it: what stands there may be a secret.
pub(super) fn method(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#'));
    &path[..end.unwrap_or(path.len())]
}

/// The host and port of an `:authority`, without the user and password that may stand before them.
pub(super) fn host(authority: &[u8]) -> &[u8] {
    let user = authority.iter().rposition(|byte| *byte == b'@');
    &authority[user.map_or(0, |at| at + 1)..]
}

/// Bytes as a text of at most `most` bytes, its control characters escaped.
pub(super) fn limited(bytes: &[u8], most: usize) -> Box<str> {
    // Of a long text only the beginning is looked at.
    let bytes = &bytes[..bytes.len().min(most)];
    if is_plain(bytes)
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return text.into();
    }
    let text = String::from_utf8_lossy(bytes);
    let escaped = escape(&text);
    let text = escaped.as_deref().unwrap_or(&text);
    text[..text.floor_char_boundary(most)].into()
}

/// Whether this is printable ASCII, as nearly all names are. It looks at all bytes, and so at many at a time.
fn is_plain(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

/// What an error says and what its causes say, each once, in as much as a line takes.
pub fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut all = in_our_words(error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = in_our_words(error.to_string());
        if !all.contains(&text) {
            all = format!("{all}: {text}");
        }
        cause = error.source();
    }
    cut(&all)
}

/// What rustls says of a connection that ended in its midst, with the address of a page for programmers, is "broke off".
fn in_our_words(text: String) -> String {
    const RUSTLS: &str = "peer closed connection without sending TLS close_notify";
    let Some((before, after)) = text.split_once(RUSTLS) else {
        return text;
    };
    let after = match after.trim_start_matches([':', ' ', '\n']).strip_prefix("https://") {
        Some(page) => page.find(char::is_whitespace).map_or("", |end| &page[end..]),
        None => after,
    };
    format!("{before}the other end broke off{after}")
}

/// As much of a stranger's text as a line takes.
pub fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use portunus_logbook::is_control;

    use super::*;

    #[test]
    fn a_connection_that_broke_off_is_told_without_the_address_of_a_page() {
        let page = "https://docs.rs/rustls/latest/rustls/manual/_03_howto/index.html#unexpected-eof";
        let rustls = format!("h2: peer closed connection without sending TLS close_notify: {page}");
        let error = std::io::Error::other(rustls);
        assert_eq!(sentence(&error), "h2: the other end broke off");
    }

    #[test]
    fn what_moves_a_terminal_or_ends_a_line_is_escaped_and_the_rest_stays() {
        let text = limited("a\r\n\u{1b}[2J\u{202e}\u{200f}\u{2028}\u{9b}\u{7f}\0é".as_bytes(), 200);
        assert!(!text.contains(is_control), "{text:?}");
        assert!(
            text.starts_with("a\\u000d\\u000a\\u001b[2J\\u202e") && text.ends_with('é'),
            "{text}"
        );
    }

    #[test]
    fn a_query_and_a_password_are_no_part_of_a_name() {
        for (path, name) in [
            ("/a.B/C", "a.B/C"),
            ("/a.B/C?key=x/y?z", "a.B/C"),
            ("*", "*"),
            ("/?x", ""),
            ("/a#x", "a"),
        ] {
            assert_eq!(method(path.as_bytes()), name.as_bytes());
        }
        for (authority, name) in [
            ("a:1", "a:1"),
            ("u:p@a:1", "a:1"),
            ("u@p@[::1]:1", "[::1]:1"),
            ("u@", ""),
            ("", ""),
        ] {
            assert_eq!(host(authority.as_bytes()), name.as_bytes());
        }
    }

    #[test]
    fn a_text_is_cut_between_characters_and_never_longer_than_allowed() {
        for most in 0..12 {
            assert!(limited("ééé\n\n".as_bytes(), most).len() <= most);
        }
        assert!(limited(&[0xff; 1_000], 100).len() <= 100);
    }
}
