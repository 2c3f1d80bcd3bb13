//! Which requests are ours.

use std::{error::Error, fmt};

use http::{HeaderMap, HeaderName, Method, Version, header};
use memchr::memchr;
use percent_encoding::percent_decode_str;

use crate::connection::{RequestInfo, RequestKind};

/// A path pattern was refused: its syntax is wrong, or it cannot stand beside one that is there.
#[derive(Debug)]
pub struct PatternError {
    pattern: String,
    source: matchit::InsertError,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path pattern {:?} is invalid", self.pattern)
    }
}

impl Error for PatternError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// The rule by which a layer knows its requests.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// None: any path.
    patterns: Option<matchit::Router<()>>,
    /// HEAD goes with GET.
    methods: Vec<Method>,
    checks_accept: bool,
    /// The query parameter that stands in for `Last-Event-ID`.
    id_parameter: Option<Box<str>>,
}

impl Rule {
    pub(super) fn any_path() -> Self {
        Self {
            patterns: None,
            methods: vec![Method::GET],
            checks_accept: true,
            id_parameter: None,
        }
    }

    /// Adds a pattern. After `any_path` it changes nothing, once it has been checked.
    pub(super) fn add_path(&mut self, pattern: &str) -> Result<(), PatternError> {
        let refused = |source| PatternError {
            pattern: pattern.to_owned(),
            source,
        };
        match &mut self.patterns {
            Some(patterns) => patterns.insert(pattern, ()).map_err(refused),
            None => matchit::Router::new().insert(pattern, ()).map_err(refused),
        }
    }

    pub(super) fn path(pattern: &str) -> Result<Self, PatternError> {
        let mut rule = Self::any_path();
        rule.patterns = Some(matchit::Router::new());
        rule.add_path(pattern)?;
        Ok(rule)
    }

    pub(super) fn set_methods(&mut self, methods: Vec<Method>) {
        self.methods = methods;
    }

    pub(super) fn ignore_accept(&mut self) {
        self.checks_accept = false;
    }

    /// What is to be kept of the request, if it is ours. Allocates nothing if it is not.
    pub(super) fn matches<B>(&self, request: &http::Request<B>) -> Option<RequestInfo> {
        // In the order of what they cost.
        let method = match request.method() {
            &Method::HEAD => &Method::GET,
            method => method,
        };
        if !self.methods.contains(method) {
            return None;
        }
        let found = match &self.patterns {
            Some(patterns) => Some(patterns.at(request.uri().path()).ok()?),
            None => None,
        };
        if self.checks_accept && !admits_event_stream(request.headers()) {
            return None;
        }
        let params = found.iter().flat_map(|found| found.params.iter());
        let params = params.map(|(name, value)| {
            let decoded = percent_decode_str(value).decode_utf8();
            let value = decoded.map_or_else(|_| value.into(), |decoded| decoded.into());
            (name.into(), value)
        });
        Some(RequestInfo {
            params: params.collect(),
            last_event_id: self.last_event_id(request),
            kind: RequestKind {
                is_get: method == Method::GET,
                is_head: request.method() == Method::HEAD,
                is_http1: request.version() <= Version::HTTP_11,
                is_http2: request.version() == Version::HTTP_2,
            },
            link: request.extensions().get().cloned(),
        })
    }
}

impl Rule {
    pub(super) fn set_id_parameter(&mut self, name: &str) {
        self.id_parameter = Some(name.into());
    }

    /// The client's place: from the header, or from the query where there is no header.
    fn last_event_id<B>(&self, request: &http::Request<B>) -> Option<Box<str>> {
        if request.headers().contains_key(LAST_EVENT_ID) {
            return last_event_id(request.headers());
        }
        let name = self.id_parameter.as_deref()?;
        let query = request.uri().query()?;
        let mut values = query.split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then_some(value)
        });
        let value = percent_decode_str(values.next()?).decode_utf8().ok()?;
        Some(value)
            .filter(|value| !value.is_empty())
            .map(Into::into)
    }
}

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The one `Last-Event-ID`, if it is UTF-8 text. It need not be ASCII, and some clients send an
/// empty one when they have none.
fn last_event_id(headers: &HeaderMap) -> Option<Box<str>> {
    let mut values = headers.get_all(LAST_EVENT_ID).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    // Copied: a header value keeps the server's whole read buffer alive.
    Some(text).filter(|text| !text.is_empty()).map(Box::from)
}

/// Whether `Accept` is absent or admits `text/event-stream` (RFC 9110, section 12.5.1): the most
/// specific media range that covers it counts, and a weight of 0 excludes.
pub(crate) fn admits_event_stream(headers: &HeaderMap) -> bool {
    let mut best: Option<(u8, bool)> = None;
    let mut is_absent = true;
    for value in headers.get_all(header::ACCEPT) {
        is_absent &= value.is_empty();
        let mut rest = Some(value.as_bytes());
        while let Some(ranges) = rest {
            let range = match memchr(b',', ranges) {
                Some(comma) => {
                    rest = Some(&ranges[comma + 1..]);
                    &ranges[..comma]
                }
                None => {
                    rest = None;
                    ranges
                }
            };
            let Some((specificity, is_admitted)) = media_range(range) else {
                continue;
            };
            if best.is_none_or(|(so_far, _)| specificity > so_far) {
                best = Some((specificity, is_admitted));
            }
        }
    }
    is_absent || best.is_some_and(|(_, is_admitted)| is_admitted)
}

/// How specifically a media range covers `text/event-stream`, and whether it admits it.
fn media_range(range: &[u8]) -> Option<(u8, bool)> {
    let range = range.trim_ascii();
    // Most ranges are turned away by their first byte.
    let (name, specificity): (&[u8], u8) = match range.first()? {
        b'*' => (b"*/*", 1),
        b't' | b'T' if range.get(5) == Some(&b'*') => (b"text/*", 2),
        b't' | b'T' => (b"text/event-stream", 3),
        _ => return None,
    };
    let (start, parameters) = range.split_at_checked(name.len())?;
    let is_whole = matches!(parameters.trim_ascii_start(), [] | [b';', ..]);
    if !is_whole || !start.eq_ignore_ascii_case(name) {
        return None;
    }
    let mut parts = parameters
        .split(|byte| *byte == b';')
        .map(<[u8]>::trim_ascii);
    let weight = parts.find_map(|part| part.strip_prefix(b"q=").or(part.strip_prefix(b"Q=")));
    let is_zero = weight.is_some_and(|weight| {
        weight.first() == Some(&b'0') && weight.iter().all(|byte| matches!(byte, b'0' | b'.'))
    });
    Some((specificity, !is_zero))
}
