package postfix

import (
	"context"
	"fmt"
	"os/exec"

	"postern/internal/page"
)

// Pages are what the console shows of Postfix; ours is what of the configuration
// in force matters to it.
func Pages(ours func() *Ours) []page.Page {
	return []page.Page{{Name: "postfix", Title: "Postfix", Group: "Gateway", Show: func(ctx context.Context, _ *page.Ask) (*page.View, error) {
		v := &page.View{Intro: "What is wrong or dangerous about Postfix's configuration on this host, the worst first. Nothing is changed from here: `postern postfix setup` does, and `undo` takes it back."}
		if _, err := exec.LookPath("postconf"); err != nil {
			v.Add(page.Notice{Text: "There is no postconf on this host. `postern postfix check --main FILE --master FILE` judges what it has printed elsewhere."})
			return v, nil
		}
		s, err := Read(ctx, "")
		if err != nil {
			return v, err
		}
		v.Add(findings(Check(s, ours()))...)
		return v, nil
	}}}
}

func findings(all []Finding) []page.Block {
	counts := map[Severity]int{}
	t := page.Table{Title: "Findings", Columns: []string{"Severity", "Where", "What", "What fixes it"}, Empty: "There is nothing to find fault with."}
	for i := range all {
		f := &all[i]
		counts[f.Severity]++
		state := page.State(page.Quiet, string(f.Severity))
		switch f.Severity {
		case Error:
			state.Tone = page.Bad
		case Warning:
			state.Tone = page.Warn
		case Note:
		}
		state.Note = f.Slug
		t.Add(state, page.Code(f.Where), page.T("%s", f.Text), page.Code(f.Fix))
	}
	tiles := page.Tiles{{Name: "Errors", Value: fmt.Sprint(counts[Error]), Tone: page.Good}, {Name: "Warnings", Value: fmt.Sprint(counts[Warning])}, {Name: "Notes", Value: fmt.Sprint(counts[Note])}}
	if counts[Error] > 0 {
		tiles[0].Tone = page.Bad
	}
	if counts[Warning] > 0 {
		tiles[1].Tone = page.Warn
	}
	return []page.Block{tiles, t}
}
