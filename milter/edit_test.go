package milter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"postern/policy"
)

// postfix does to a header what cleanup(8) does: an insertion counts all
// fields with its own Received, a change those of the name without it.
type postfix []policy.Field

func (p postfix) apply(steps []step) postfix {
	own := policy.Field{Name: "Received", Value: "own"}
	all := append(postfix{own}, p...)
	for _, s := range steps {
		switch {
		case s.kind == editInsert && (s.index == atEnd || s.index >= len(all)):
			all = append(all, policy.Field{Name: s.name, Value: s.value})
		case s.kind == editInsert:
			all = slices.Insert(all, s.index, policy.Field{Name: s.name, Value: s.value})
		default:
			n, found := 0, false
			for i := 0; i < len(all); i++ {
				if all[i] == own || !strings.EqualFold(all[i].Name, s.name) {
					continue
				}
				if n++; n != s.index {
					continue
				}
				found = true
				if s.kind == editDelete {
					all = slices.Delete(all, i, i+1)
				} else {
					all[i] = policy.Field{Name: s.name, Value: s.value}
				}
				break
			}
			if !found {
				panic(fmt.Sprintf("no field %d of name %q", s.index, s.name))
			}
		}
	}
	at := slices.Index(all, own)
	return slices.Delete(all, at, at+1)
}

// direct makes the edits as [policy.Edit] says.
func (p postfix) direct(edits []policy.Edit) postfix {
	var out postfix
	for i := 0; i <= len(p); i++ {
		for _, e := range edits {
			if e.Kind == policy.InsertField && e.At == i {
				out = append(out, policy.Field{Name: e.Name, Value: e.Value})
			}
		}
		if i == len(p) {
			break
		}
		f, keep := p[i], true
		for _, e := range edits {
			switch {
			case e.At != i:
			case e.Kind == policy.ReplaceField:
				f, keep = policy.Field{Name: e.Name, Value: e.Value}, true
			case e.Kind == policy.DeleteField:
				keep = false
			}
		}
		if keep {
			out = append(out, f)
		}
	}
	return out
}

func fieldsOf(p postfix) *fields {
	f := &fields{}
	for _, x := range p {
		f.add(x, 1<<20)
	}
	return f
}

func TestPlanDoesWhatTheEditsSay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"Received", "received", "Subject", "X-A", "x-a", "To"}
	name := func() string { return names[r.IntN(len(names))] }
	for range 20_000 {
		p := make(postfix, r.IntN(8))
		for i := range p {
			p[i] = policy.Field{Name: name(), Value: fmt.Sprint(" ", i)}
		}
		edits := make([]policy.Edit, r.IntN(6))
		for i := range edits {
			e := policy.Edit{Kind: policy.EditKind(r.IntN(3)), At: r.IntN(len(p) + 1), Name: name(), Value: fmt.Sprint(" e", i)}
			if e.At == len(p) {
				e.Kind = policy.InsertField
			} else if r.IntN(4) == 0 {
				e.Name, e.Value = p[e.At].Name, p[e.At].Value // nothing changes
			}
			edits[i] = e
		}
		steps, bad := fieldsOf(p).plan(edits)
		if len(bad) > 0 {
			t.Fatalf("bad edits: %v", bad)
		}
		if got, want := p.apply(steps), p.direct(edits); !slices.Equal(got, want) {
			t.Fatalf("header %v\nedits %+v\nsteps %+v\ngot  %v\nwant %v", p, edits, steps, got, want)
		}
		if got, want := policy.Apply(p, edits), p.apply(steps); !slices.Equal(got, []policy.Field(want)) {
			t.Fatalf("header %v\nedits %+v\nwho finishes is told %v\nPostfix has %v", p, edits, got, want)
		}
	}
}

func TestNothingIsChangedThatStaysTheSame(t *testing.T) {
	f := fieldsOf(postfix{{Name: "Subject", Value: " hello"}, {Name: "X-A", Value: "\tfolded\n\ttext"}})
	steps, bad := f.plan([]policy.Edit{
		{Kind: policy.ReplaceField, At: 0, Name: "Subject", Value: " hello"},
		{Kind: policy.ReplaceField, At: 1, Name: "X-A", Value: "\tfolded\n\ttext"},
	})
	if len(steps)+len(bad) > 0 {
		t.Errorf("steps %+v, bad %+v", steps, bad)
	}
	// Only the case of the name, or a space, is a change too.
	steps, _ = f.plan([]policy.Edit{
		{Kind: policy.ReplaceField, At: 0, Name: "subject", Value: " hello"},
		{Kind: policy.ReplaceField, At: 1, Name: "X-A", Value: "\tfolded\n\t text"},
	})
	if len(steps) != 2 || steps[0].kind != editChange || steps[1].kind != editChange {
		t.Errorf("steps %+v", steps)
	}
}

func TestEditsThatCannotBeMade(t *testing.T) {
	f := fieldsOf(postfix{{Name: "Subject", Value: " hello"}})
	edits := []policy.Edit{
		{Kind: policy.InsertField, At: 2, Name: "A"},
		{Kind: policy.InsertField, At: -1, Name: "A"},
		{Kind: policy.ReplaceField, At: 1, Name: "A"},
		{Kind: policy.DeleteField, At: 1},
		{Kind: policy.InsertField, At: 0, Name: ""},
		{Kind: policy.InsertField, At: 0, Name: "a b"},
		{Kind: policy.InsertField, At: 0, Name: "a:"},
		{Kind: policy.InsertField, At: 0, Name: "a\x00"},
		{Kind: policy.InsertField, At: 0, Name: "gr\u00fcn"},
		{Kind: policy.InsertField, At: 0, Name: strings.Repeat("n", 1000)},
	}
	steps, bad := f.plan(edits)
	if len(bad) != len(edits) || len(steps) > 0 {
		t.Errorf("%d of %d were bad; steps %+v", len(bad), len(edits), steps)
	}
}

func TestFieldsAreBounded(t *testing.T) {
	f := &fields{}
	for i := range 1000 {
		if !f.add(policy.Field{Name: "A", Value: fmt.Sprint(i)}, 1000) {
			t.Fatal(i)
		}
	}
	if f.add(policy.Field{Name: "A"}, 1000) {
		t.Error("one more than may be")
	}
	f.reset()
	long := strings.Repeat("n", 1<<20)
	for i := range 5 {
		if got := f.add(policy.Field{Name: long}, 1000); got != (i < 4) {
			t.Errorf("name %d of 1 MiB: %v", i, got)
		}
	}
	f.reset()
	if cap(f.names) > 16<<10 {
		t.Error("the memory of a large message is kept")
	}
}

func BenchmarkPlan(b *testing.B) {
	p := make(postfix, 10_000)
	var edits []policy.Edit
	for i := range p {
		p[i] = policy.Field{Name: fmt.Sprintf("X-%d", i%100), Value: " v"}
		edits = append(edits, policy.Edit{Kind: policy.DeleteField, At: i})
	}
	f := fieldsOf(p)
	b.ReportAllocs()
	for b.Loop() {
		f.plan(edits)
	}
}
