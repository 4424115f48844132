//! A small HTTP service: POST an order, see it shipped by the dispatcher in the same process. With the endpoints that an
//! orchestrator asks: `/livez` and `/readyz`.
//!
//! `cargo run --example axum_service` orders from itself and stops; with `-- --serve` it keeps running:
//! `curl -d '{"item":"lamp"}' -H 'content-type: application/json' http://127.0.0.1:…/orders`

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router as Routes};
use outbox_core::{Draft, Operations, TableName, Transactor};
use outbox_dispatcher::{CancellationToken, Dispatcher, Router, Status, TracingObserver};
use outbox_examples::http::{self, Failed};
use outbox_examples::{AnyError, Scratch, orders};
use outbox_sea_orm::{OutboxTable, SeaOrm, transactor};
use sea_orm::{DatabaseConnection, EntityTrait};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

#[derive(Clone)]
struct App {
    db: DatabaseConnection,
    tx: Transactor<SeaOrm>,
    outbox: OutboxTable,
    dispatcher: Status,
}

#[derive(Deserialize)]
struct PlaceOrder {
    item: String,
}

/// The order and its message commit together, also when the client hangs up in the middle.
async fn place(State(app): State<App>, Json(request): Json<PlaceOrder>) -> Result<impl IntoResponse, Failed> {
    app.tx
        .run(async |cx| {
            let order = orders::place(cx, &request.item).await?;
            app.outbox.enqueue(cx, Draft::json("order.placed", &order.id)?.key(order.id)).await?;
            Ok((StatusCode::CREATED, Json(order.id)))
        })
        .await
}

async fn show(State(app): State<App>, Path(id): Path<i64>) -> Result<Response, Failed> {
    Ok(match orders::Entity::find_by_id(id).one(&app.db).await? {
        Some(order) => Json(json!({ "item": order.item, "shipped": order.shipped })).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

/// Is there a point in going on? A dispatcher that waits for its database is alive.
async fn live(State(app): State<App>) -> (StatusCode, String) {
    let state = app.dispatcher.state();
    (status(state.is_live()), state.to_string())
}

/// Can it serve? The database answers, and the dispatcher claims.
async fn ready(State(app): State<App>) -> (StatusCode, String) {
    let state = app.dispatcher.state();
    match app.outbox.ping().await {
        Ok(()) => (status(state.is_ready()), state.to_string()),
        Err(error) => (status(false), error.to_string()),
    }
}

fn status(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn router(db: DatabaseConnection) -> Router {
    Router::new().on_json("order.placed", async move |id: i64| Ok(orders::ship(&db, id).await?))
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    tracing_subscriber::fmt().init();
    let scratch = Scratch::new()?;
    let db = scratch.connect().await?;
    orders::create_table(&db).await?;
    let outbox = OutboxTable::new(&db, TableName::parse("orders.outbox")?);
    outbox.migrate().await?;

    let stop = CancellationToken::new();
    let (observer, status) = Status::new();
    let dispatcher =
        Dispatcher::new(outbox.clone(), router(db.clone())).with_observer((TracingObserver, observer));
    let dispatcher = tokio::spawn(dispatcher.run(stop.clone()));

    let app = App { tx: transactor(&db), db, outbox, dispatcher: status };
    let routes = Routes::new()
        .route("/orders", post(place))
        .route("/orders/{id}", get(show))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(app);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("http://{address}/orders");
    let server = axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    match std::env::args().nth(1).as_deref() {
        Some("--serve") => tokio::signal::ctrl_c().await?,
        _ => order_from_ourselves(address).await?,
    }
    stop.cancel();
    server.await??;
    dispatcher.await??;
    Ok(())
}

async fn order_from_ourselves(address: std::net::SocketAddr) -> Result<(), AnyError> {
    let (status, id) = http::request(address, "POST", "/orders", r#"{"item":"lamp"}"#).await?;
    assert_eq!(status, 201);
    for probe in ["/livez", "/readyz"] {
        assert_eq!(http::request(address, "GET", probe, "").await?, (200, "working".into()));
    }
    for _ in 0..200 {
        let (status, body) = http::request(address, "GET", &format!("/orders/{id}"), "").await?;
        println!("GET /orders/{id}: {status} {body}");
        if body.contains(r#""shipped":true"#) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("the order was not shipped in time".into())
}
