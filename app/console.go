package app

import (
	"context"
	"errors"
	"slices"

	"go.uber.org/zap"

	"postern/admin"
	"postern/config"
	"postern/console"
	"postern/internal/adminapi"
	"postern/internal/listen"
	"postern/internal/page"
	"postern/journal"
	"postern/postfix"
)

// consoleDoor is the console with what answers its calls: an administrator's door
// inside the process, which is there whether or not others can open one.
type consoleDoor struct {
	calls   *admin.Server
	client  *adminapi.Client
	console *console.Server
	done    chan error // both servers, when they have ended
}

func (a *App) startConsole(cfg *config.Config) error {
	if cfg.Console.Listen == "" {
		return nil
	}
	var addr listen.Address
	if err := addr.UnmarshalText([]byte(cfg.Console.Listen)); err != nil {
		return err
	}
	l, err := listen.Open(&addr, a.o.Inherited)
	if err != nil {
		return err
	}
	inside, client := adminapi.Pipe()
	one, err := console.New(cfg.Console, console.Options{
		Client: client, Pages: a.pages(), Live: journal.Live(client), Hostname: cfg.Hostname, Version: a.o.Version, State: cfg.Store.Path, Log: a.log, Metrics: a.registry,
	})
	if err != nil {
		return errors.Join(err, l.Close(), inside.Close())
	}
	d := &consoleDoor{calls: admin.NewServer(a, a.calls(), "", a.registry, a.log.Named("console")), client: client, console: one, done: make(chan error, 2)}
	go func() { d.done <- d.calls.Serve(inside) }()
	go func() { d.done <- d.console.Serve(l) }()
	a.console = d
	a.log.Info("the console is open", zap.Stringer("address", l.Addr()))
	return nil
}

// stop closes the console, and then what answers its calls. d may be nil.
func (d *consoleDoor) stop(ctx context.Context, log *zap.Logger) {
	if d == nil {
		return
	}
	err := d.console.Stop(ctx)
	d.client.Idle()
	if err = errors.Join(err, d.calls.Stop(ctx), <-d.done, <-d.done); err != nil {
		log.Warn("console", zap.Error(err))
	}
}

// pages are those of the parts, in the order of the menu.
func (a *App) pages() []page.Page {
	whole := admin.Pages()
	all := slices.Concat(whole[:1], a.journal.Pages(), whole[1:])
	for _, u := range a.current.Load().units {
		all = append(all, u.pages...)
	}
	now := func() *config.Config { return a.current.Load().cfg }
	all = append(all, postfix.Pages(func() *postfix.Ours { return PostfixOf(now()) })...)
	return append(all, config.Pages(now)...)
}
