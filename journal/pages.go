package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"postern/internal/adminapi"
	"postern/internal/page"
	"postern/policy"
)

// Pages are what the console shows of decisions.
func (*Journal) Pages() []page.Page {
	return []page.Page{
		{Name: "decisions", Title: "Decisions", Group: "Mail", Show: showDecisions},
		{Name: "decision", Title: "Decision", Under: "decisions", Show: showDecision},
	}
}

// shown is how many decisions a page has.
const shown = 100

// searchIn bounds a search: what it has found by then is shown.
const searchIn = 20 * time.Second

var verdicts = page.Choices("any", "refused", "would", "reject", "defer", "defer-if-permit", "continue", "allow", "permit", "hold", "discard", "redirect")

func showDecisions(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "What was decided, the newest first, and what is decided now. A search goes through what the journal keeps."}
	f, err := filterAsked(a)
	fields := []page.Field{
		{Name: "address", Label: "Sender or recipient", Placeholder: "ann@example.org"},
		{Name: "domain", Label: "Domain", Hint: "Of sender or recipient, or one above it."},
		{Name: "client", Label: "Client", Hint: "An address or a network."},
		{Name: "ref", Label: "Reference", Hint: "As it stands in the reply."},
		{Name: "queue_id", Label: "Queue id"},
		{Name: "login", Label: "Login"},
		{Name: "check", Label: "Check"},
		{Name: "reason", Label: "Reason", Placeholder: "greylist-first-contact"},
		{Name: "verdict", Label: "Verdict", Type: "select", Choices: verdicts},
		{Name: "since", Label: "Not before", Hint: "How long ago (90m, 7d), a date, or date and time."},
		{Name: "until", Label: "Not after"},
	}
	asked := false
	for i := range fields {
		fields[i].Value = a.Get(fields[i].Name)
		asked = asked || fields[i].Value != ""
	}
	form := page.Form{Title: "Search", Fields: fields, Closed: !asked}
	if err != nil {
		v.Add(form)
		return v, err
	}
	t := page.Table{Columns: eventColumns, Empty: "No decision is found.", Live: !asked}
	ctx, cancel := context.WithTimeout(ctx, searchIn)
	defer cancel()
	f.Limit = shown + 1
	var last time.Time
	more := false
	err = Admin{a.Client}.SearchJSON(ctx, f, func(text json.RawMessage) bool {
		r := new(Record)
		if json.Unmarshal(text, r) != nil || r.Decision == nil {
			return true
		}
		if len(t.Rows) == shown {
			more = true
			return false
		}
		last = r.Time
		t.Rows = append(t.Rows, Event(r))
		return true
	})
	if err != nil && ctx.Err() != nil {
		err = nil
		t.More = "The search was ended after " + searchIn.String() + ": give it a time or an address."
	}
	v.Add(form, t)
	if more {
		older := url.Values{}
		for name, values := range a.Values {
			older[name] = values
		}
		older.Set("until", last.Add(-time.Nanosecond).Format(time.RFC3339Nano))
		v.Add(page.Links{{Text: "Older decisions", Href: "/p/decisions?" + older.Encode()}})
	}
	return v, err
}

func filterAsked(a *page.Ask) (*Filter, error) {
	f := &Filter{}
	for name, to := range f.texts() {
		*to = strings.TrimSpace(a.Get(name))
	}
	for name, to := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if text := strings.TrimSpace(a.Get(name)); text != "" {
			t, err := ParseTime(text, a.Now)
			if err != nil {
				return f, err
			}
			*to = t
		}
	}
	return f, nil
}

var eventColumns = []string{"Time", "Outcome", "Check", "Client", "From and to", "Reference"}

// Event is a decision as a row of the console's tables.
func Event(r *Record) page.Event {
	d := r.Decision
	at := page.Cell{Time: r.Time, Text: r.Time.Local().Format("Jan 2 15:04:05"), Href: linkOf(r)}
	outcome := page.Verdict(&d.Verdict)
	if d.WouldCheck != "" {
		outcome.Note = strings.TrimSpace(outcome.Note + " in shadow: " + d.WouldCheck + " (" + d.Would.Reason + ")")
	}
	who := page.Cell{Text: orNull(r.Sender), Note: "to " + r.Recipient}
	if r.Recipient == "" {
		who.Note = "at " + r.Stage.String()
		if r.Stage < policy.StageMail {
			who = page.Cell{Text: "at " + r.Stage.String()}
		}
	}
	return page.Event{at, outcome, {Text: d.Check}, {Text: r.Client, Note: r.Name, Code: true}, who, {Text: d.Reference, Code: true}}
}

// linkOf is where a decision is shown: by its reference, or else by its time.
func linkOf(r *Record) string {
	if ref := r.Decision.Reference; ref != "" {
		return page.Link("decision", "ref", ref)
	}
	return page.Link("decision", "at", r.Time.Format(time.RFC3339Nano), "client", r.Client, "recipient", r.Recipient)
}

func orNull(sender string) string {
	if sender == "" {
		return "<>"
	}
	return sender
}

func showDecision(ctx context.Context, a *page.Ask) (*page.View, error) {
	r, err := decisionAsked(ctx, a)
	if err != nil {
		return nil, err
	}
	v := &page.View{Title: "Decision of " + r.Time.Local().Format("Jan 2 15:04:05")}
	if r.Decision.Reference != "" {
		v.Title = "Decision " + r.Decision.Reference
	}
	q := page.Facts{Title: "What was asked"}
	q.AddCell("Time", page.Cell{Text: r.Time.Local().Format("2006-01-02 15:04:05.000 MST")})
	q.AddCell("Client", page.Code(strings.TrimSpace(r.Client+" "+r.Name)))
	for _, f := range [][2]string{
		{"Reverse name", r.ReverseName}, {"HELO", r.Helo}, {"Sender", orNull(r.Sender)}, {"Recipient", r.Recipient}, {"Login", r.Login}, {"Queue id", r.QueueID},
		{"Stage", r.Stage.String()}, {"Door", r.Door}, {"policy_context", r.Context},
	} {
		if f[1] != "" {
			q.AddCell(f[0], page.Code(f[1]))
		}
	}
	if r.Size > 0 {
		q.Add("Size", strconv.FormatInt(r.Size, 10)+" bytes")
	}
	if r.TLS != nil {
		q.Add("TLS", strings.TrimSpace(r.TLS.Protocol+" "+r.TLS.Cipher))
	}
	v.Add(q)
	v.Add(page.Trace(r.Decision)...)
	if facts := factsOf(&r.Facts); len(facts.Rows) > 0 {
		v.Add(facts)
	}
	more := page.Links{{Text: "What would be decided now", Href: page.Link("what-if", "client", r.Client, "client_name", r.Name, "reverse_name", r.ReverseName,
		"helo", r.Helo, "sender", r.Sender, "recipient", r.Recipient, "login", r.Login, "policy_context", r.Context)}}
	more = append(more, page.Cell{Text: "Decisions of this client", Href: page.Link("decisions", "client", r.Client)})
	if r.Sender != "" {
		more = append(more, page.Cell{Text: "of this sender", Href: page.Link("decisions", "address", r.Sender)})
	}
	if r.Recipient != "" {
		more = append(more, page.Cell{Text: "of this recipient", Href: page.Link("decisions", "address", r.Recipient)})
	}
	v.Add(more)
	return v, nil
}

func decisionAsked(ctx context.Context, a *page.Ask) (*Record, error) {
	if ref := a.Get("ref"); ref != "" {
		r, err := Admin{a.Client}.Decision(ctx, strings.TrimSpace(ref))
		if err == nil && r.Decision == nil {
			err = notFound(ref)
		}
		return r, err
	}
	at, err := time.Parse(time.RFC3339Nano, a.Get("at"))
	if err != nil {
		return nil, fmt.Errorf("no reference and no time: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, searchIn)
	defer cancel()
	var found *Record
	err = Admin{a.Client}.SearchJSON(ctx, &Filter{Since: at, Until: at, Client: clientAsked(a.Get("client")), Limit: shown}, func(text json.RawMessage) bool {
		r := new(Record)
		if json.Unmarshal(text, r) == nil && r.Decision != nil && r.Client == a.Get("client") && r.Recipient == a.Get("recipient") {
			found = r
		}
		return found == nil
	})
	if err == nil && found == nil {
		err = adminapi.NotFound(fmt.Errorf("that decision is no longer in the journal, or was never written to it (journal.keep)"))
	}
	return found, err
}

// clientAsked leaves out what is no address: a client that Postfix did not know.
func clientAsked(text string) string {
	if text == "unknown" {
		return ""
	}
	return text
}

func factsOf(f *policy.Facts) page.Facts {
	t := page.Facts{Title: "What the checks found"}
	if f.SPF.Result != "" {
		t.Add("SPF", strings.TrimSpace(f.SPF.Result+" "+f.SPF.Domain+" "+f.SPF.Identity))
	}
	t.Add("DKIM", f.Auth.DKIM)
	t.Add("DMARC", f.Auth.DMARC)
	t.Add("ARC", f.Auth.ARC)
	t.Add("Provider", f.Provider)
	for _, l := range f.Listings {
		t.AddCell("Listed", page.Cell{Text: l.List + " has " + l.What, Note: fmt.Sprintf("%s, weight %d", l.Answer, l.Weight), Code: true})
	}
	if f.RBLScore != 0 {
		t.Add("Score of DNS lists", strconv.Itoa(f.RBLScore))
	}
	t.Add("Marks", strings.Join(f.Marks, ", "))
	for _, m := range f.Missing {
		t.AddCell("Could not be asked", page.Cell{Text: m, Tone: page.Warn})
	}
	return t
}

// Live calls yield with decisions as they happen, as rows of the console's table.
func Live(c *adminapi.Client) func(ctx context.Context, yield func(page.Event) bool) error {
	return func(ctx context.Context, yield func(page.Event) bool) error {
		return Admin{c}.Tail(ctx, &Filter{}, func(h *Heard) bool {
			if h.Record == nil || h.Decision == nil {
				return true
			}
			return yield(Event(h.Record))
		})
	}
}
