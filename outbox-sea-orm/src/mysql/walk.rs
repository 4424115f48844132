//! A walk in pages over the names in an index: what both servers read quickly is a range from a constant.

/// A row of a page.
pub(super) trait Named {
    fn name(&self) -> &str;
}

/// A walk that begins behind a name and goes around.
pub(super) struct Walk {
    start: String,
    /// The next page begins here.
    pub(super) from: String,
    pub(super) n_rows: usize,
    is_around: bool,
    pub(super) is_over: bool,
}

impl Walk {
    pub(super) fn behind(name: &str, n_rows: usize) -> Self {
        let (is_around, is_over) = (false, false);
        Self { start: name.to_owned(), from: after(name), n_rows, is_around, is_over }
    }

    /// Takes note of where a page has ended, and leaves out what the walk has seen at its beginning.
    pub(super) fn go_on(&mut self, page: &mut Vec<impl Named>) {
        let is_full = page.len() >= self.n_rows;
        if self.is_around {
            page.retain(|row| row.name() <= self.start.as_str());
            self.is_over = page.len() < self.n_rows;
        }
        match page.last() {
            Some(row) if is_full => self.from = after(row.name()),
            _ => {
                self.from.clear();
                self.is_around = true;
            }
        }
    }
}

/// The first name behind `name`.
pub(super) fn after(name: &str) -> String {
    format!("{name}\0")
}
