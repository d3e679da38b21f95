//! Steps on static routes: HTTPS by both protocols, redirects, what is not there.

use anyhow::{Result, bail};

use super::Tour;
use super::clients::Page;

/// HTTP/1.1, and what the upstream is told about the client.
pub(super) fn http1(tour: &mut Tour) -> Result<String> {
    let page = tour
        .curl
        .https("localhost", "/hello?a=b", &["--http1.1"])?
        .expect(200)?;
    served_by_the_demo_page(&page, "1.1", "GET /hello?a=b HTTP/1.1")?;
    let told = page.body.to_ascii_lowercase();
    for expected in [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: https",
        "x-request-id: ",
    ] {
        if !told.contains(expected) {
            bail!(
                "expected {expected:?} towards the upstream, saw {}",
                page.body
            );
        }
    }
    Ok(String::new())
}

/// HTTP/2.
pub(super) fn http2(tour: &mut Tour) -> Result<String> {
    let page = tour
        .curl
        .https("localhost", "/hello", &["--http2"])?
        .expect(200)?;
    served_by_the_demo_page(&page, "2", "GET /hello HTTP/1.1")?;
    Ok(String::new())
}

fn served_by_the_demo_page(page: &Page, version: &str, request: &str) -> Result<()> {
    if page.version != version {
        bail!("expected HTTP/{version}, saw HTTP/{}", page.version);
    }
    if !page.body.contains(request) {
        bail!(
            "expected the upstream to be asked {request:?}, saw {}",
            page.body
        );
    }
    if page.header("x-request-id").is_none() {
        bail!("expected an X-Request-ID, saw {}", page.head);
    }
    Ok(())
}

/// The hosts and paths of the repository's routes.yaml, with targets on loopback.
pub(super) fn committed_routes(tour: &mut Tour) -> Result<String> {
    // compute answers for itself: no token, no list.
    tour.curl
        .https("cloud-api.eddisonso.com", "/compute/containers", &[])?
        .expect(401)?;
    let stripped = tour
        .curl
        .https(
            "cloud-api.eddisonso.com",
            "/sse/cluster-info/nodes?x=1",
            &[],
        )?
        .expect(200)?;
    if !stripped.body.contains("GET /nodes?x=1 HTTP/1.1") {
        bail!(
            "expected /sse/cluster-info to be removed, saw {}",
            stripped.body
        );
    }
    tour.curl
        .https("cloud-api.eddisonso.com", "/computer", &[])?
        .expect(404)?;
    tour.curl
        .https("cloud.eddisonso.com", "/index.html", &[])?
        .expect(200)?;
    Ok(String::new())
}

/// To HTTPS on its public port.
pub(super) fn redirect(tour: &mut Tour) -> Result<String> {
    let page = tour.curl.http("localhost", "/hello?a=b")?.expect(308)?;
    let expected = format!(
        "https://localhost:{}/hello?a=b",
        tour.stack.plan.ports.https
    );
    if page.header("location") != Some(&expected) {
        bail!("expected Location: {expected}, saw {}", page.head);
    }
    Ok(expected)
}

/// Neither a route nor a container.
pub(super) fn unknown_host(tour: &mut Tour) -> Result<String> {
    tour.curl.unnamed("nobody.localhost", "/")?.expect(404)?;
    tour.curl
        .https("nobody.compute.localhost", "/", &[])?
        .expect(404)?;
    Ok(String::new())
}
