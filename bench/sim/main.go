package main

import (
	"flag"
	"fmt"
	"os"

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
	{"strict", func(j *names.Judge) filter { return newPostern("postern strict", j, strict) }},
	{"balanced", func(j *names.Judge) filter { return newBalanced(j) }},
	{"gentle", func(j *names.Judge) filter { return newPostern("postern gentle", j, gentle) }},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run() error {
	a := defaults()
	var o options
	fs := flag.NewFlagSet("sim", flag.ExitOnError)
	fs.Uint64Var(&o.seed, "seed", 1, "same seed, same world")
	fs.IntVar(&o.days, "days", 30, "days that are counted")
	fs.IntVar(&o.warm, "warm", 0, "days before them, from which the filters only learn")
	fs.BoolVar(&o.allDay, "all-day", false, "spam that is tried again is tried for a day, as a mail server does")
	a.register(fs)
	_ = fs.Parse(os.Args[1:]) // exits
	if err := a.check(); err != nil {
		return err
	}
	judge, err := names.New(names.DefaultConfig(), zap.NewNop())
	if err != nil {
		return err
	}
	w := makeWorld(a, o, judge)
	var results []*result
	for _, p := range profiles {
		f := p.make(judge)
		results = append(results, simulate(w, f))
		f.close()
	}
	report(os.Stdout, results)
	return nil
}
