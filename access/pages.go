package access

import (
	"context"
	"strings"

	"postern/internal/page"
)

// Pages are what the console shows of the lists.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "lists", Title: "Lists", Group: "Checks", Show: showLists}}
}

// shown is how many entries a page has.
const shown = 500

func showLists(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Entries of the allow and deny lists that are in force. They stand in files, which are watched: an edit is taken by itself, and one with faults is not."}
	find, kind, which := strings.ToLower(a.Get("find")), a.Get("kind"), a.Get("which")
	t := page.Table{Columns: []string{"Entry", "List", "Action", "Hits", "Last hit", "Until", "Owner", "Place"}, Empty: "No entry is found."}
	counts := map[string]int{}
	expired, never, n := 0, 0, 0
	err := Admin{a.Client}.List(ctx, func(e Entry) bool {
		counts[e.Kind]++
		if e.Expired {
			expired++
		}
		if e.Hits == 0 {
			never++
		}
		if kind != "" && e.Kind != kind || which == "expired" && !e.Expired || which == "never hit" && e.Hits > 0 ||
			find != "" && !strings.Contains(strings.ToLower(e.Pattern+"\n"+e.Text+"\n"+e.Owner+"\n"+e.Place), find) {
			return true
		}
		if n++; n > shown {
			return true
		}
		until := page.T("always")
		until.Tone = page.Quiet
		if !e.Until.IsZero() {
			if until = page.At(e.Until); e.Expired {
				until = page.State(page.Warn, "expired")
				until.Note = e.Until.Format("2006-01-02")
			}
		}
		tone := page.Bad
		if e.Action == "allow" || e.Action == "permit" {
			tone = page.Good
		}
		pattern := page.Code(e.Pattern)
		pattern.Note = e.Field
		action := page.State(tone, e.Action)
		action.Note = e.Text
		t.Add(pattern, page.T("%s", e.Kind), action, page.N(e.Hits), page.At(e.LastHit), until, page.T("%s", e.Owner), page.Code(e.Place))
		return true
	})
	if n > shown {
		t.More = page.Thousands(int64(n-shown)) + " more are left out: search for some."
	}
	v.Add(page.Tiles{
		{Name: "Allow", Value: page.Thousands(int64(counts["allow"])), Href: page.Link("lists", "kind", "allow")},
		{Name: "Deny", Value: page.Thousands(int64(counts["deny"])), Href: page.Link("lists", "kind", "deny")},
		{Name: "Tables", Value: page.Thousands(int64(counts["tables"])), Href: page.Link("lists", "kind", "tables")},
		{Name: "Expired", Value: page.Thousands(int64(expired)), Tone: warnIf(expired), Href: page.Link("lists", "which", "expired")},
		{Name: "Never hit", Value: page.Thousands(int64(never)), Note: "since the start", Href: page.Link("lists", "which", "never hit")},
	}, page.Form{Fields: []page.Field{
		{Name: "find", Label: "Text", Value: a.Get("find"), Hint: "In the entry, its text, its owner or its place."},
		{Name: "kind", Label: "List", Value: kind, Type: "select", Choices: page.Choices("all", "allow", "deny", "tables")},
		{Name: "which", Label: "Only", Value: which, Type: "select", Choices: page.Choices("all", "expired", "never hit")},
	}}, t)
	return v, err
}

func warnIf(n int) page.Tone {
	if n > 0 {
		return page.Warn
	}
	return page.Plain
}
