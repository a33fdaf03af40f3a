package known

import (
	"context"
	"fmt"
	"strings"

	"postern/internal/conf"
	"postern/internal/page"
)

// Pages are what the console shows of the check.
func (*Check) Pages() []page.Page {
	return []page.Page{
		{Name: "expected", Title: "Expected mail", Group: "Mail", Show: showExpected, Actions: []page.Action{
			{Name: "expect", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
				d, err := conf.ParseDuration(strings.TrimSpace(a.Get("for")))
				if err != nil {
					return nil, err
				}
				e, err := Admin{a.Client}.Expect(ctx, strings.TrimSpace(a.Get("to")), strings.TrimSpace(a.Get("from")), d)
				if err != nil {
					return nil, err
				}
				return &page.Done{Text: fmt.Sprintf("Until %s %v does not wait.", e.Until.Local().Format("2006-01-02 15:04"), e), After: e.String()}, nil
			}},
			{Name: "cancel", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
				n, err := Admin{a.Client}.Cancel(ctx, a.Get("to"), a.Get("from"))
				if err != nil {
					return nil, err
				}
				return &page.Done{Text: fmt.Sprintf("%d expectations were ended.", n)}, nil
			}},
		}},
		{Name: "correspondents", Title: "Correspondents", Group: "Checks", Show: showKnown, Actions: []page.Action{
			{Name: "forget", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
				n, err := Admin{a.Client}.Forget(ctx, Filter{Kind: a.Get("kind"), User: a.Get("user"), With: a.Get("with")}, false)
				if err != nil {
					return nil, err
				}
				return &page.Done{Text: page.Thousands(int64(n)) + " entries were forgotten.", Before: fmt.Sprint(n, " entries")}, nil
			}},
		}},
	}
}

func showExpected(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Mail that must come now, such as a code from a new sender, is let past the greylist for a time. Everything else still judges it."}
	v.Add(page.Form{Title: "Expect mail", Action: "expect", Submit: "Let it past", Fields: []page.Field{
		{Name: "to", Label: "To", Required: true, Placeholder: "ann@example.com", Hint: "An address, or @example.com for all of a domain."},
		{Name: "from", Label: "From", Placeholder: "example.org", Hint: "An address, or a domain and all below it. Left out: anybody."},
		{Name: "for", Label: "For", Value: "30m", Required: true, Hint: "30m, 8h, 2d."},
	}})
	all, err := Admin{a.Client}.Expected(ctx)
	t := page.Table{Title: "Expected now", Columns: []string{"To", "From", "Since", "Until", ""}, Empty: "No mail is expected."}
	for _, e := range all {
		from := page.Code(e.From)
		if e.From == "" {
			from = page.T("anybody")
		}
		t.Add(page.Code(e.To), from, page.At(e.Since), page.At(e.Until), page.Cell{Buttons: []page.Button{{Action: "cancel", Label: "End it", Values: page.Values("to", e.To, "from", e.From)}}})
	}
	v.Add(t)
	return v, err
}

// shownEntries is how many entries a page has.
const shownEntries = 200

func showKnown(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Whom our users write to. Answers from there do not wait."}
	s, err := Admin{a.Client}.Stats(ctx)
	if err != nil {
		return v, err
	}
	v.Add(page.Tiles{
		{Name: "Correspondents", Value: page.Thousands(int64(s.Correspondents)), Note: fmt.Sprintf("of %s at most", page.Thousands(int64(s.Max)))},
		{Name: "Users", Value: page.Thousands(int64(s.Users)), Note: fmt.Sprintf("%d are the most of one", s.MostOfOne)},
		{Name: "Domains", Value: page.Thousands(int64(s.Domains)), Note: fmt.Sprintf("%d known as a whole", s.KnownDomains)},
	}, page.Form{Fields: []page.Field{
		{Name: "user", Label: "Our user", Value: a.Get("user"), Hint: "A part of the address."},
		{Name: "with", Label: "Outside", Value: a.Get("with"), Hint: "A part of the address or domain."},
		{Name: "kind", Label: "Kind", Value: a.Get("kind"), Type: "select", Choices: page.Choices("all", KindCorrespondent, KindDomain)},
	}})
	t := page.Table{Columns: []string{"Our user", "Outside", "Kind", "First", "Last", "Users", ""}, Empty: "No entry is found."}
	f := Filter{Kind: a.Get("kind"), User: strings.TrimSpace(a.Get("user")), With: strings.TrimSpace(a.Get("with")), Limit: shownEntries + 1}
	err = Admin{a.Client}.List(ctx, f, func(e Entry) bool {
		if len(t.Rows) == shownEntries {
			t.More = "There are more: search for some."
			return false
		}
		users := page.Cell{}
		if e.Users > 0 {
			users = page.N(e.Users)
		}
		kind := page.State(page.Good, e.Kind)
		if !e.Known {
			kind = page.State(page.Quiet, e.Kind)
			kind.Note = "too few users"
		}
		t.Add(page.Code(e.User), page.Code(e.With), kind, page.At(e.First), page.At(e.Last), users, page.Cell{Buttons: []page.Button{{
			Action: "forget", Label: "Forget", Danger: true, Values: page.Values("kind", e.Kind, "user", e.User, "with", e.With),
			Confirm: fmt.Sprintf("Forget that %s writes to %s? It is learned again from the next message.", e.User, e.With),
		}}})
		return true
	})
	v.Add(t)
	return v, err
}
