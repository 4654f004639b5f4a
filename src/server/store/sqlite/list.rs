//! Pages of a listing, in creation order, both ways.
//!
//! A page costs the same wherever it lies and however many objects there are: the cursor is turned
//! into a place in creation order (of a deleted object too) and the table is read from there. Only
//! where few objects changed after the time that is asked for is the index of changes the shorter
//! way.

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Transaction, params_from_iter};
use ulid::Ulid;

use crate::server::store::sqlite::rows::{NEXT_COLUMN, OBJECT_COLUMNS, object_row, uid};
use crate::server::store::{ListPage, ListRequest, ObjectRow, Order, PageFrom, StoreError};

/// Up to so many changes are sorted; more are found by walking along creation order.
const FEW_CHANGES: i64 = 1000;

#[derive(Clone, Copy)]
enum Way {
    Forward,
    Backward,
}

impl Way {
    fn of(order: Order) -> Self {
        match order {
            Order::Ascending => Way::Forward,
            Order::Descending => Way::Backward,
        }
    }

    fn back(self) -> Self {
        match self {
            Way::Forward => Way::Backward,
            Way::Backward => Way::Forward,
        }
    }

    /// A place before all objects.
    fn start(self) -> i64 {
        match self {
            Way::Forward => 0,
            Way::Backward => i64::MAX,
        }
    }
}

/// One page.
pub fn list(tx: &Transaction<'_>, request: &ListRequest) -> Result<ListPage, StoreError> {
    let filter = Filter::new(tx, request)?;
    let limit = request.limit as usize;
    let along = Way::of(request.order);
    let (from, way) = match request.from {
        PageFrom::Start => (along.start(), along),
        PageFrom::After(id) => (place(tx, id)?, along),
        PageFrom::Before(id) => (place(tx, id)?, along.back()),
    };
    let mut rows = filter.rows(tx, from, way, limit + 1)?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    if matches!(request.from, PageFrom::Before(_)) {
        rows.reverse();
    }
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Ok(ListPage { objects: Vec::new(), before: None, after: None });
    };
    // One end is known from the row too many; the other is asked for, unless nothing can lie there.
    let beyond = |end: i64, way: Way| filter.rows(tx, end, way, 1).map(|rows| !rows.is_empty());
    let (more_before, more_after) = match request.from {
        PageFrom::Start => (false, more),
        PageFrom::After(_) => (beyond(first.0, along.back())?, more),
        PageFrom::Before(_) => (more, beyond(last.0, along)?),
    };
    Ok(ListPage {
        before: more_before.then_some(first.1.id),
        after: more_after.then_some(last.1.id),
        objects: rows.into_iter().map(|(_, row)| row).collect(),
    })
}

/// Where in creation order an object is, or was.
fn place(tx: &Transaction<'_>, id: Ulid) -> Result<i64, StoreError> {
    tx.prepare_cached(
        "SELECT seq FROM objects WHERE id = ?1 UNION ALL SELECT seq FROM tombstones WHERE id = ?1",
    )?
    .query_row([uid(id)], |row| row.get(0))
    .optional()?
    .ok_or(StoreError::UnknownCursor)
}

/// The conditions of a request besides its place.
struct Filter {
    by_change: bool,
    sql: String,
    values: Vec<Value>,
}

impl Filter {
    fn new(tx: &Transaction<'_>, request: &ListRequest) -> Result<Self, StoreError> {
        let mut filter = Self { by_change: false, sql: String::new(), values: Vec::new() };
        if let Some(after) = request.updated_after {
            filter.push("o.updated_at > ?", Value::Integer(after.0));
            let changes: i64 = tx
                .prepare_cached(
                    "SELECT count(*) FROM (SELECT 1 FROM objects WHERE updated_at > ?1 LIMIT ?2)",
                )?
                .query_row([after.0, FEW_CHANGES], |row| row.get(0))?;
            filter.by_change = changes < FEW_CHANGES;
        }
        if let Some(part) = &request.search {
            // As bytes: on text, instr would stop at a NUL.
            filter.push("instr(CAST(o.name AS BLOB), ?) > 0", Value::Blob(part.clone().into_bytes()));
        }
        Ok(filter)
    }

    fn push(&mut self, condition: &str, value: Value) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.values.push(value);
    }

    /// Up to `limit` rows beyond `from`, nearest first.
    fn rows(
        &self,
        tx: &Transaction<'_>,
        from: i64,
        way: Way,
        limit: usize,
    ) -> Result<Vec<(i64, ObjectRow)>, StoreError> {
        let (compare, order) = match way {
            Way::Forward => (">", "ASC"),
            Way::Backward => ("<", "DESC"),
        };
        let index = if self.by_change { "INDEXED BY objects_by_change" } else { "NOT INDEXED" };
        let sql = format!(
            "SELECT {OBJECT_COLUMNS}, o.seq FROM objects o {index}
             WHERE o.seq {compare} ?{} ORDER BY o.seq {order} LIMIT {limit}",
            self.sql
        );
        let values = std::iter::once(Value::Integer(from)).chain(self.values.iter().cloned());
        let mut statement = tx.prepare_cached(&sql)?;
        let rows = statement
            .query_map(params_from_iter(values), |row| Ok((row.get(NEXT_COLUMN)?, object_row(row)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
