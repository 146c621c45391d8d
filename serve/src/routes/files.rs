//! `/v1/files`: what is to be trained on, as OpenAI's API has it.
//!
//! Each line is read when the file comes, as it will be when it is trained on: whoever uploads a wrong one hears it at once, with the
//! line, rather than from a job that fails.

use std::io::{BufRead, BufReader};
use std::path::Path;

use actix_multipart::{Field, Multipart};
use actix_web::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;
use retune_ledger::Upload;
use retune_wire::{Refusal, TrainingLine, purpose};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::page::{Page, Rules};
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

/// OpenAI's limit.
const MAX_BYTES: u64 = 512 << 20;
/// Of a line: far above any context.
const MAX_LINE: u64 = 16 << 20;
/// Of all else in the form.
const MAX_TEXT: usize = 1_000;

const LIST: Rules = Rules {
    limit: 10_000,
    most: 10_000,
    newest_first: true,
    order: true,
    filters: &["purpose"],
    metadata: false,
};

/// `POST /v1/files`.
pub(crate) async fn create(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let folder = app.ledger.files().join("uploads");
    let mut form = Form::default();
    let mut multipart = Multipart::new(http.headers(), payload);
    while let Some(field) = multipart.next().await {
        form.take(field.map_err(|e| malformed(&e.to_string()))?, &folder)
            .await?;
    }
    let missing = |name: &str| {
        let message = format!("Missing required parameter: '{name}'.");
        Error::param(name, "missing_required_parameter", message)
    };
    purpose(&form.purpose.ok_or_else(|| missing("purpose"))?)?;
    let Some((filename, part, bytes)) = form.file else {
        return Err(missing("file"));
    };
    let path = part.to_path_buf();
    let checked = tokio::task::spawn_blocking(move || check(&path));
    checked
        .await
        .map_err(|e| Error::Engine(format!("the check of an upload was cut off: {e}")))??;
    let upload = Upload::new(&filename, "fine-tune", bytes, Caller::of(&http).key_id);
    // The ledger moves it.
    let path = part.keep().map_err(|e| failed(&folder)(e.error))?;
    app.ledger.put_upload(&upload, path).await?;
    tracing::info!(file = upload.id, bytes, "a file was uploaded");
    Ok(HttpResponse::Ok().json(object(&upload)))
}

/// `GET /v1/files`.
pub(crate) async fn list(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let page = Page::read(http.query_string(), &LIST)?;
    let mut uploads = app.ledger.uploads().await?;
    if let Some(purpose) = page.filter("purpose") {
        uploads.retain(|upload| upload.purpose == purpose);
    }
    page.of(uploads.iter().map(object).collect())
}

/// `GET /v1/files/{id}`.
pub(crate) async fn one(app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, Error> {
    let upload = app.ledger.upload(&id).await?.ok_or_else(|| unknown(&id))?;
    Ok(HttpResponse::Ok().json(object(&upload)))
}

/// `GET /v1/files/{id}/content`.
pub(crate) async fn content(
    app: web::Data<App>,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let bytes = app.ledger.upload_content(&id).await?;
    let bytes = bytes.ok_or_else(|| unknown(&id))?;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "application/octet-stream"))
        .insert_header((CONTENT_DISPOSITION, "attachment"))
        .body(bytes))
}

/// `DELETE /v1/files/{id}`.
pub(crate) async fn delete(
    app: web::Data<App>,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    if !app.ledger.remove_upload(&id).await? {
        return Err(unknown(&id));
    }
    tracing::info!(file = id.as_str(), "a file was deleted");
    let deleted = json!({ "id": id.as_str(), "object": "file", "deleted": true });
    Ok(HttpResponse::Ok().json(deleted))
}

fn object(upload: &Upload) -> Value {
    json!({
        "id": upload.id,
        "object": "file",
        "bytes": upload.bytes,
        "created_at": upload.created.timestamp(),
        "expires_at": null,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": "processed",
        "status_details": null,
    })
}

fn unknown(id: &str) -> Error {
    Error::NotFound(format!("No such File object: {id}"))
}

fn malformed(what: &str) -> Error {
    Refusal {
        message: format!("The form could not be read: {what}."),
        param: None,
        code: None,
    }
    .into()
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| retune_ledger::Error::Io { path, source }.into()
}

/// What came of the form so far. A file that is not kept is deleted with it.
#[derive(Default)]
struct Form {
    purpose: Option<String>,
    /// Its name, where it is meanwhile, and its length.
    file: Option<(String, tempfile::TempPath, u64)>,
}

impl Form {
    async fn take(&mut self, mut field: Field, folder: &Path) -> Result<(), Error> {
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "purpose" => self.purpose = Some(text(&mut field).await?),
            "file" => self.file = Some(file(&mut field, folder).await?),
            other => {
                let message = format!("Unrecognized request argument supplied: {other}");
                return Err(Error::param(other, "unknown_parameter", message));
            }
        }
        Ok(())
    }
}

async fn text(field: &mut Field) -> Result<String, Error> {
    let mut text = Vec::new();
    while let Some(chunk) = field.next().await {
        text.extend_from_slice(&chunk.map_err(|e| malformed(&e.to_string()))?);
        if text.len() > MAX_TEXT {
            return Err(malformed("a field is too long"));
        }
    }
    String::from_utf8(text).map_err(|_| malformed("a field is no UTF-8"))
}

async fn file(
    field: &mut Field,
    folder: &Path,
) -> Result<(String, tempfile::TempPath, u64), Error> {
    let disposition = field.content_disposition();
    let filename = disposition.and_then(|d| d.get_filename()).unwrap_or("file");
    let filename: String = filename
        .chars()
        .filter(|c| !c.is_control())
        .take(255)
        .collect();
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let part = tempfile::NamedTempFile::new_in(folder).map_err(failed(folder))?;
    let (part, path) = part.into_parts();
    let mut part = tokio::fs::File::from_std(part);
    let mut bytes = 0;
    while let Some(chunk) = field.next().await {
        let chunk = chunk.map_err(|e| malformed(&e.to_string()))?;
        bytes += chunk.len() as u64;
        if bytes > MAX_BYTES {
            let message = format!("The file is larger than {MAX_BYTES} bytes.");
            return Err(Error::param("file", "file_too_large", message));
        }
        part.write_all(&chunk).await.map_err(failed(&path))?;
    }
    part.flush().await.map_err(failed(&path))?;
    Ok((filename, path, bytes))
}

/// Reads each line as it will be trained on; the first wrong one is told, and how many there are.
fn check(path: &Path) -> Result<(), Error> {
    let mut reader = BufReader::new(std::fs::File::open(path).map_err(failed(path))?);
    let (mut line, mut number) = (Vec::new(), 0_u64);
    let (mut examples, mut wrong, mut first) = (0_u64, 0_u64, None);
    loop {
        line.clear();
        let mut some = std::io::Read::take(&mut reader, MAX_LINE);
        let read = some.read_until(b'\n', &mut line).map_err(failed(path))?;
        if read == 0 {
            break;
        }
        number += 1;
        if number == 1 && line.starts_with("\u{feff}".as_bytes()) {
            line.drain(..3);
        }
        if read as u64 == MAX_LINE && line.last() != Some(&b'\n') {
            let message = format!("Line {number} is longer than {MAX_LINE} bytes.");
            return Err(Error::param("file", "invalid_file_format", message));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match TrainingLine::read(line.trim_ascii()) {
            Ok(_) => examples += 1,
            Err(refusal) => {
                wrong += 1;
                first.get_or_insert((number, refusal.message));
            }
        }
    }
    let message = match first {
        Some((number, what)) if wrong > 1 => {
            format!("Line {number}: {what} ({wrong} lines of this file are wrong.)")
        }
        Some((number, what)) => format!("Line {number}: {what}"),
        None if examples == 0 => {
            "There is no example in the file: expected JSONL, an object with 'messages', or with 'input' and two outputs, on each line.".to_owned()
        }
        None => return Ok(()),
    };
    Err(Error::param("file", "invalid_file_format", message))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_first_wrong_line_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            check(&path).map_err(|e| e.to_string())
        };
        assert_eq!(said(&format!("\u{feff}{good}\r\n\n{good}\n")), Ok(()));
        assert_eq!(said(good), Ok(()));
        for (text, says) in [
            (String::new(), "no example"),
            ("\n\n".to_owned(), "no example"),
            (format!("{good}\n{{"), "Line 2: It is no valid JSON"),
            (format!("{good}\n{{}}\n{good}\n[]\n"), "Line 2: Missing"),
            (format!("{good}\n{{}}\n{good}\n[]\n"), "(2 lines"),
            ("\u{0}\u{ff}".to_owned(), "Line 1:"),
        ] {
            let error = said(&text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
