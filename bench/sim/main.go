package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"go.uber.org/zap"

	"postern/names"
)

// profile makes a filter.
type profile struct {
	key  string
	make func(*names.Judge) filter
}

// profiles are all that are compared.
var profiles = []profile{
	{"none", func(*names.Judge) filter { return nothing{} }},
	{"postgrey", func(*names.Judge) filter { return newPostgrey(true) }},
	{"postgrey-bare", func(*names.Judge) filter { return newPostgrey(false) }},
	{"sqlgrey", func(*names.Judge) filter { return newSQLgrey() }},
	{"rspamd", func(*names.Judge) filter { return newRspamd() }},
	{"strict", ours("strict")},
	{"strict-1", ours("strict", knownAfter(1))},
	{"balanced", ours("balanced")},
	{"balanced-1", ours("balanced", knownAfter(1))},
	{"gentle", ours("gentle")},
}

func main() {
	debug.SetGCPercent(400) // worlds are large, and soon forgotten
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, args []string) error {
	a := defaults()
	var o options
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.Uint64Var(&o.seed, "seed", 1, "same seed, same world")
	fs.IntVar(&o.days, "days", 30, "days that are counted")
	fs.IntVar(&o.warm, "warm", 30, "days before them, from which the filters only learn")
	fs.BoolVar(&o.allDay, "all-day", false, "spam that is tried again is tried for a day, as a mail server does")
	sweeps := fs.Bool("sweep", false, "also halve and double each assumption (some minutes)")
	list := fs.Bool("list", false, "print the assumptions and where they come from, and end")
	a.register(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *list {
		fmt.Fprint(out, a.String())
		return nil
	}
	if err := a.check(); err != nil {
		return err
	}
	if o.days < 1 || o.warm < 0 {
		return fmt.Errorf("-days %d -warm %d: there must be a day to count", o.days, o.warm)
	}
	judge, err := names.New(names.DefaultConfig(), zap.NewNop())
	if err != nil {
		return err
	}
	w := makeWorld(a, o, judge)
	describe(out, w, o)
	base := byKey{}
	var results []*result
	for _, p := range profiles {
		base[p.key] = show(w, p, judge)
		results = append(results, base[p.key])
	}
	report(out, results)
	longer := o
	longer.allDay = true
	reportMarks(out, base, only(needed, makeWorld(a, longer, judge), judge))
	if *sweeps {
		reportSweep(out, base, sweep(a, o, judge))
	}
	return nil
}

// show shows a world to a profile's filter.
func show(w *world, p profile, judge *names.Judge) *result {
	f := p.make(judge)
	defer f.close()
	return simulate(w, f)
}

// only shows a world to the named profiles.
func only(keys []string, w *world, judge *names.Judge) byKey {
	out := byKey{}
	for _, p := range profiles {
		if slices.Contains(keys, p.key) {
			out[p.key] = show(w, p, judge)
		}
	}
	return out
}

// swept is a world in which one assumption is another.
type swept struct {
	name    string
	value   float64
	results byKey
}

// sweep halves and doubles each assumption, on all processors.
func sweep(a assumptions, o options, judge *names.Judge) []swept {
	fields := a.each()
	out := make([]swept, 2*len(fields))
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				changed := a
				x := changed.each()[i/2]
				*x.value = x.scaled([]float64{0.5, 2}[i%2])
				out[i] = swept{x.name, *x.value, only(needed, makeWorld(changed, o, judge), judge)}
			}
		})
	}
	for i := range out {
		next <- i
	}
	close(next)
	wg.Wait()
	return out
}
