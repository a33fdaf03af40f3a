package moving

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sqlgrey reads a dump of sqlgrey's database: of SQLite (.dump), MySQL or
// MariaDB (mysqldump), or PostgreSQL (pg_dump, with COPY or --inserts). Times
// without a zone are of loc.
//
// sqlgrey keeps who has passed by sender and network (from_awl) and by the
// sender's domain and network (domain_awl), for all recipients; what it keeps
// of recipients (connect) is who waits.
func Sqlgrey(r io.Reader, loc *time.Location) (*Greylisted, error) {
	q := &sqlgrey{g: new(Greylisted), loc: loc, credit: make(map[string]*Pass)}
	var stmt strings.Builder // a statement that goes on
	var table string         // of a COPY under way
	var columns []string
	err := scanLines(r, func(n int, line string) error {
		q.line = n
		switch {
		case table != "":
			if line == `\.` {
				table = ""
				return nil
			}
			q.row(table, columns, strings.Split(line, "\t"))
			return nil
		case stmt.Len() == 0 && hasWord(line, "COPY "):
			name, rest, ok := strings.Cut(line[5:], "(")
			cols, _, ok2 := strings.Cut(rest, ")")
			if !ok || !ok2 {
				return fmt.Errorf("line %d: a COPY without columns", n)
			}
			table, columns = unquoted(name), fieldsOf(cols)
			return nil
		case stmt.Len() == 0 && !hasWord(line, "INSERT INTO "):
			return nil
		}
		if stmt.Len() > 0 {
			stmt.WriteByte('\n')
		}
		stmt.WriteString(line)
		done, err := q.insert(stmt.String())
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if done {
			stmt.Reset()
		} else if stmt.Len() > maxLine {
			return fmt.Errorf("line %d: a statement longer than %d bytes", n, maxLine)
		}
		return nil
	})
	if err == nil && stmt.Len() > 0 {
		err = errors.New("the dump ends within a statement")
	}
	if err == nil && table != "" {
		err = errors.New(`the dump ends within a COPY, without \.`)
	}
	for _, p := range q.credit {
		q.g.Past = append(q.g.Past, *p)
	}
	slices.SortFunc(q.g.Past, func(a, b Pass) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Client.String()+a.Sender, b.Client.String()+b.Sender)
	})
	return q.g, err
}

// manyPasses stands for as many as credit takes.
const manyPasses = 1000

type sqlgrey struct {
	g      *Greylisted
	loc    *time.Location
	line   int
	credit map[string]*Pass // by network and domain
}

// The columns of a table of which an INSERT or COPY names none.
var sqlgreyColumns = map[string][]string{
	"from_awl":   {"sender_name", "sender_domain", "src", "first_seen", "last_seen"},
	"domain_awl": {"sender_domain", "src", "first_seen", "last_seen"},
	"connect":    {"sender_name", "sender_domain", "src", "rcpt", "first_seen"},
}

func hasWord(line, word string) bool {
	return len(line) >= len(word) && strings.EqualFold(line[:len(word)], word)
}

// indexFold is strings.Index without regard to the case of ASCII letters.
func indexFold(s, word string) int {
	for i := range len(s) {
		if hasWord(s[i:], word) {
			return i
		}
	}
	return -1
}

func unquoted(name string) string {
	name = strings.TrimSpace(name)
	if _, last, ok := strings.Cut(name, "."); ok { // a schema
		name = last
	}
	return strings.Trim(name, "\"`[]")
}

func fieldsOf(list string) (out []string) {
	for f := range strings.SplitSeq(list, ",") {
		out = append(out, unquoted(f))
	}
	return out
}

// insert reads INSERT INTO table [(columns)] VALUES (...),(...); done is false
// when the statement goes on in the next line.
func (q *sqlgrey) insert(s string) (done bool, err error) {
	rest := s[len("INSERT INTO "):]
	at := indexFold(rest, "VALUES")
	if at < 0 {
		return strings.Contains(s, ";"), nil // another kind of insert
	}
	head := rest[:at]
	name, cols, named := strings.Cut(head, "(")
	table := unquoted(name)
	columns := sqlgreyColumns[table]
	if named {
		columns = fieldsOf(strings.TrimSuffix(strings.TrimSpace(cols), ")"))
	}
	rows, done, err := tuples(rest[at+len("VALUES"):])
	if err != nil || !done {
		return done, err
	}
	for _, row := range rows {
		q.row(table, columns, row)
	}
	return true, nil
}

// tuples reads (a,'b',...),(...); done is false when no ; ends them.
func tuples(s string) (rows [][]string, done bool, err error) {
	var row []string
	var b strings.Builder
	in, quoted := false, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quoted && c == '\\' && i+1 < len(s): // MySQL
			i++
			b.WriteByte(s[i])
		case quoted && c == '\'' && i+1 < len(s) && s[i+1] == '\'':
			i++
			b.WriteByte(c)
		case c == '\'':
			quoted = !quoted
		case quoted:
			b.WriteByte(c)
		case !in && c == '(':
			in, row = true, nil
			b.Reset()
		case !in && c == ';':
			return rows, true, nil
		case in && (c == ',' || c == ')'):
			row = append(row, b.String())
			b.Reset()
			if c == ')' {
				in = false
				rows = append(rows, row)
			}
		case in && c != ' ' && c != '\n':
			b.WriteByte(c)
		case !in && c != ',' && c != ' ' && c != '\n' && c != '\t':
			return nil, false, fmt.Errorf("unexpected %q in a list of values", c)
		}
	}
	return rows, false, nil
}

// row takes one row of a table.
func (q *sqlgrey) row(table string, columns, values []string) {
	if sqlgreyColumns[table] == nil {
		return
	}
	where := fmt.Sprintf("line %d", q.line)
	if len(columns) != len(values) {
		q.g.unread(where, "%s: %d values for %d columns", table, len(values), len(columns))
		return
	}
	if table == "connect" {
		q.g.Waiting++
		return
	}
	get := func(name string) string {
		if i := slices.Index(columns, name); i >= 0 {
			return strings.TrimSpace(values[i])
		}
		return ""
	}
	addr, ok := address(get("src"))
	first, ok1 := q.time(get("first_seen"))
	last, ok2 := q.time(get("last_seen"))
	domain := get("sender_domain")
	if !ok || !ok1 || !ok2 {
		q.g.unread(where, "%s: no address or time in %q", table, values)
		return
	}
	if domain == "" || strings.HasPrefix(domain, "-") { // "-undef-": the null sender
		return
	}
	key := addr.String() + " " + domain
	p := q.credit[key]
	if p == nil {
		p = &Pass{Client: addr, Sender: "postmaster@" + domain, First: first, Time: last}
		q.credit[key] = p
	}
	if first.Before(p.First) {
		p.First = first
	}
	if last.After(p.Time) {
		p.Time = last
	}
	if table == "domain_awl" {
		p.Passes = manyPasses
	} else {
		p.Passes++
	}
}

// time reads a timestamp of one of the databases; SQLite has seconds since
// 1970 where it was not told otherwise.
func (q *sqlgrey) time(s string) (time.Time, bool) {
	if _, err := strconv.ParseInt(s, 10, 64); err == nil {
		return seconds(s)
	}
	for _, layout := range []string{"2006-01-02 15:04:05.999999999-07", "2006-01-02 15:04:05.999999999", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, s, q.loc); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}
