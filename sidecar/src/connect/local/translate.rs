//! Between the types of `http` and header lists.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use crate::http2::Shared;
use crate::http2::hpack::{FieldId, Fields};

/// The head of a request, to be cleared once it was sent.
pub(super) fn head_fields(request: &Request<()>, shared: &mut Shared) -> Fields {
    let mut fields = Fields::new();
    let uri = request.uri();
    match request.method() {
        &Method::POST => fields.push_id(FieldId::METHOD_POST, &mut shared.interner),
        method => fields.push(b":method", method.as_str().as_bytes(), false),
    }
    match uri.scheme_str() {
        None | Some("http") => fields.push_id(FieldId::SCHEME_HTTP, &mut shared.interner),
        Some(scheme) => fields.push(b":scheme", scheme.as_bytes(), false),
    }
    if let Some(authority) = uri.authority() {
        fields.push(b":authority", authority.as_str().as_bytes(), false);
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    fields.push(b":path", path.as_bytes(), false);
    push_all(&mut fields, request.headers());
    fields
}

/// Appends all that is in the map.
pub(super) fn push_all(fields: &mut Fields, map: &HeaderMap) {
    for (name, value) in map {
        fields.push(name.as_str().as_bytes(), value.as_bytes(), value.is_sensitive());
    }
}

/// The response whose header list came last, if it is one that the types of `http` can say.
pub(super) fn read_response(status: u16, shared: &Shared) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).ok()?;
    *response.headers_mut() = read_fields(shared)?;
    Some(response)
}

/// The header list that came last, without what begins with a colon.
pub(super) fn read_fields(shared: &Shared) -> Option<HeaderMap> {
    if shared.fields().over_limit() {
        return None;
    }
    let mut map = HeaderMap::new();
    for field in shared.fields().iter(&shared.interner) {
        if field.name_text.starts_with(b":") {
            continue;
        }
        let name = HeaderName::from_bytes(field.name_text).ok()?;
        let mut value = HeaderValue::from_bytes(field.value).ok()?;
        value.set_sensitive(field.never_indexed);
        map.try_append(name, value).ok()?;
    }
    Some(map)
}
