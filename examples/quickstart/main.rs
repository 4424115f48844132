//! Orders in, ledger entries out, exactly one each: although messages are delivered at least once, handlers
//! fail, and a dispatcher is killed in the middle.
//!
//! `cargo run --example quickstart -- --help`

mod args;
mod fleet;
mod ledger;
mod shop;
mod storage;
mod tables;
mod verdict;

use std::io::BufRead;
use std::process::ExitCode;
use std::time::Duration;

use outbox_core::{Moved, Operations};
use outbox_examples::{AnyError, Scratch};
use sea_orm::ActiveValue::Set;
use sea_orm::{EntityTrait, PaginatorTrait, QueryOrder};

use args::{Args, USAGE};
use fleet::Fleet;
use shop::{OrderPlaced, Shop};
use storage::{Place, Storage};
use tables::{delivery, entry, gift_card, order};
use verdict::{Facts, Verdict, dead_letters};

/// From this line on the first dispatcher is killed, at a moment when many messages are booked and not settled.
const KILL_AFTER: i64 = 500;
const KILL_WITH: u64 = 8;
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many looks without any progress are too many: 20 seconds.
const MAX_IDLE_LOOKS: u32 = 80;

#[tokio::main]
async fn main() -> ExitCode {
    let result = match fleet::own_name() {
        Some(name) => fleet::dispatch(&name).await.map(|()| ExitCode::SUCCESS),
        None => start().await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("quickstart: {error}");
        ExitCode::FAILURE
    })
}

async fn start() -> Result<ExitCode, AnyError> {
    match Args::parse(std::env::args().skip(1)) {
        Ok(args) if args.help => println!("{USAGE}"),
        Ok(args) => return run(args).await,
        Err(error) => {
            eprintln!("quickstart: {error}\n\n{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(args: Args) -> Result<ExitCode, AnyError> {
    let orders = args.open()?;
    let scratch = Scratch::new()?;
    let place = match (args.postgres, args.sqlite) {
        (Some(url), _) => Place::postgres(url),
        (None, file) => Place::Sqlite(file.unwrap_or_else(|| scratch.file())),
    };
    let storage = Storage::create(&place).await?;

    let n_redriven = serve(orders, &place, &storage).await?;
    let verdict = Verdict::new(&Facts::read(&storage).await?, n_redriven);
    if args.json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        println!("{verdict}");
    }
    if !verdict.is_good() {
        eprintln!("quickstart: {place} is kept, to look into");
        std::mem::forget(scratch);
        return Ok(ExitCode::FAILURE);
    }
    storage.drop_schema(&place).await?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(orders: Box<dyn BufRead>, place: &Place, storage: &Storage) -> Result<usize, AnyError> {
    let mut fleet = Fleet::new(place);
    fleet.start("one")?;
    fleet.start("two")?;
    take_orders(orders, storage, &mut fleet).await?;
    wait_until_delivered(storage).await?;
    let n_redriven = redrive_one(storage).await?;
    wait_until_delivered(storage).await?;
    fleet.stop()?;
    Ok(n_redriven)
}

/// Takes every order while the dispatchers deliver, and replaces the first dispatcher on the way.
async fn take_orders(
    mut orders: Box<dyn BufRead>,
    storage: &Storage,
    fleet: &mut Fleet,
) -> Result<(), AnyError> {
    let shop = Shop::new(storage);
    let mut is_killed = false;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if orders.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        shop.take(number, line.trim_ascii_end()).await?;
        if number % 200 == 0 {
            show_progress(number, storage).await?;
        }
        if !is_killed && number >= KILL_AFTER && is_a_bad_moment("one", storage).await? {
            replace_first(fleet)?;
            is_killed = true;
        }
    }
    // a short input: it may have nothing to do, but it goes
    if is_killed { Ok(()) } else { replace_first(fleet) }
}

fn replace_first(fleet: &mut Fleet) -> Result<(), AnyError> {
    fleet.kill("one")?;
    fleet.start("three")
}

/// Whether this dispatcher was the last to be given a message, while much is booked and not settled.
async fn is_a_bad_moment(dispatcher: &str, storage: &Storage) -> Result<bool, AnyError> {
    let last = delivery::Entity::find().order_by_desc(delivery::Column::Id).one(&storage.db).await?;
    let is_busy = last.is_some_and(|delivery| delivery.dispatcher == dispatcher);
    Ok(is_busy && n_unsettled(storage).await? >= KILL_WITH)
}

/// How many messages are booked and not settled yet: what a kill at this moment would deliver again.
async fn n_unsettled(storage: &Storage) -> Result<u64, AnyError> {
    let n_booked = entry::Entity::find().count(&storage.db).await?;
    let outbox = storage.outbox.stats().await?.total();
    let n_settled =
        order::Entity::find().count(&storage.db).await? - outbox.n_pending - outbox.n_claimed - outbox.n_dead;
    Ok(n_booked.saturating_sub(n_settled))
}

async fn show_progress(n_lines: i64, storage: &Storage) -> Result<(), AnyError> {
    let n_entries = entry::Entity::find().count(&storage.db).await?;
    eprintln!("  {n_lines} lines taken, {n_entries} orders booked");
    Ok(())
}

async fn wait_until_delivered(storage: &Storage) -> Result<(), AnyError> {
    let (mut last, mut n_idle) = (u64::MAX, 0);
    loop {
        let stats = storage.outbox.stats().await?.total();
        let n_left = stats.n_pending + stats.n_claimed;
        if n_left == 0 {
            return Ok(());
        }
        n_idle = if n_left == last { n_idle + 1 } else { 0 };
        if n_idle > MAX_IDLE_LOOKS {
            return Err(format!("{n_left} messages are not delivered").into());
        }
        eprintln!("  {n_left} messages to deliver");
        last = n_left;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What an operator does: reads why a message is dead, repairs the cause, and sends it again.
async fn redrive_one(storage: &Storage) -> Result<usize, AnyError> {
    let letters = dead_letters(storage).await?;
    let Some(letter) = letters.first() else { return Ok(0) };
    eprintln!("  {} dead letters, the first: {}", letters.len(), letter.error);
    let event: OrderPlaced = letter.message.json()?;
    let card = gift_card::ActiveModel { code: Set(event.gift_card.unwrap_or_default()) };
    gift_card::Entity::insert(card).exec_without_returning(&storage.db).await?;
    match storage.outbox.redrive(vec![letter.message.id]).await?.as_slice() {
        [Moved::Applied] => Ok(1),
        other => Err(format!("the redrive was not applied: {other:?}").into()),
    }
}
