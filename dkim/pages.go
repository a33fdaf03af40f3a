package dkim

import (
	"context"
	"strings"
	"time"

	"postern/internal/page"
)

// Pages are what the console shows of signing.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "dkim", Title: "DKIM keys", Group: "Authentication", Show: showKeys, Actions: []page.Action{
		{Name: "check", Trial: true, Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			all, err := Admin{a.Client}.Check(ctx, Question{Domain: a.Get("domain")})
			if err != nil {
				return nil, err
			}
			return &page.Done{Text: "The DNS was asked.", View: keysView(all, a.Now)}, nil
		}},
	}}}
}

func showKeys(ctx context.Context, a *page.Ask) (*page.View, error) {
	all, err := Admin{a.Client}.Domains(ctx)
	if err != nil {
		return nil, err
	}
	return keysView(all, a.Now), nil
}

func keysView(all []Report, now time.Time) *page.View {
	v := &page.View{Intro: "Keys that sign outgoing mail, and the records that must stand in the DNS. New keys are made by `postern dkim new` and `postern dkim rotate`."}
	if len(all) == 0 {
		v.Add(page.Notice{Text: "No mail is signed: there is no [[dkim.domain]], or dkim.mode is off."})
		return v
	}
	v.Add(page.Actions{{Action: "check", Label: "Ask the DNS about all"}})
	for i := range all {
		r := &all[i]
		name := r.Domain
		if name == "" {
			name = "Any domain"
		}
		if len(r.Faults) > 0 {
			v.Add(page.Notice{Tone: page.Bad, Text: name + " is not signed as it should be:", Lines: r.Faults})
		}
		if len(r.Next) > 0 {
			v.Add(page.Notice{Text: "Next for " + name + ":", Lines: r.Next})
		}
		t := page.Table{Title: name, Columns: []string{"Selector", "Key", "Signs", "Record", "File"}}
		for j := range r.Keys {
			k := &r.Keys[j]
			signs := page.State(page.Quiet, "no")
			switch {
			case k.Signs:
				signs = page.State(page.Good, "yes")
			case now.Before(k.From):
				signs = page.State(page.Quiet, "from "+Date{k.From}.String())
			case !k.To.IsZero() && !now.Before(k.To):
				signs = page.State(page.Quiet, "until "+Date{k.To}.String())
			}
			record := page.State(page.Warn, string(k.State.Standing))
			switch k.State.Standing {
			case Published:
				record.Tone = page.Good
			case Unknown, "":
				record = page.State(page.Quiet, "not seen")
			case Missing, Other, Revoked, Faulty:
				record.Tone = page.Bad
			}
			record.Note = strings.TrimSpace(k.State.Problem + " " + strings.Join(k.State.Notes, " "))
			t.Add(page.Code(k.Selector), page.T("%s", k.Kind()), signs, record, page.Code(k.File))
		}
		v.Add(t)
		for j := range r.Keys {
			if k := &r.Keys[j]; k.Name != "" {
				v.Add(page.Text{Title: "TXT record of " + k.Name, Text: k.Record, Copy: true})
			}
		}
	}
	return v
}
