package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"postern/app"
	"postern/config"
	"postern/internal/fdstore"
	"postern/internal/listen"
	"postern/internal/logging"
)

// stopIn is how long decisions and connections under way get at the end; the
// unit's TimeoutStopSec is longer.
const stopIn = 10 * time.Second

func (c *cli) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "run the daemon in the foreground",
		Long: "Signals: HUP reads the configuration and all lists again; TERM and INT finish what is under way\n" +
			"and stop. Under systemd it tells when it is ready, takes over sockets and feeds the watchdog.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.serve(cmd.Context()) },
	}
}

func (c *cli) serve(ctx context.Context) (err error) {
	cfg, warnings, err := config.Load(c.config)
	if err != nil {
		return err
	}
	log, err := logging.Open(cfg.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	for _, w := range warnings {
		log.Warn("configuration", zap.String("warning", w))
	}
	held, err := confineTo(cfg, log.Logger)
	if err != nil {
		return err
	}
	in, err := listen.FromSystemd()
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // before the start: a signal that comes early is not fatal
	defer signal.Stop(hup)

	options := app.Options{
		Version: version, Log: log.Logger, Inherited: in,
		Load: func() (*config.Config, error) {
			cfg, warnings, err := config.Load(c.config)
			for _, w := range warnings {
				log.Warn("configuration", zap.String("warning", w))
			}
			return cfg, held.loaded(cfg, err)
		},
		Reloaded: func(cfg *config.Config) { log.SetLevel(cfg.Log.Level) },
	}
	if fdstore.Capacity() > 0 {
		options.Keep, options.Forget = fdstore.Keep, fdstore.Forget
	}
	a, err := app.New(cfg, options)
	if err != nil {
		return err
	}
	log.Info("postern starts", zap.String("version", version), zap.String("config", cfg.Path), zap.Int("pid", os.Getpid()))
	if err := a.Start(); err != nil {
		return err
	}
	c.notify(log, daemon.SdNotifyReady+"\nSTATUS="+status(a))
	c.watch(ctx, a, log, hup)

	c.notify(log, daemon.SdNotifyStopping)
	log.Info("postern stops")
	bound, cancel := context.WithTimeout(context.Background(), stopIn)
	defer cancel()
	a.Stop(bound)
	log.Info("postern has stopped")
	return nil
}

// watch serves signals and the watchdog until ctx ends.
func (c *cli) watch(ctx context.Context, a *app.App, log *logging.Log, hup <-chan os.Signal) {
	var feed <-chan time.Time
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the watchdog is off", zap.Error(err))
	} else if interval > 0 {
		t := time.NewTicker(interval / 3)
		defer t.Stop()
		feed = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			c.notify(log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			_ = a.Reload(ctx) // it has been logged, and the old configuration stays
			c.notify(log, daemon.SdNotifyReady+"\nSTATUS="+status(a))
		case <-feed:
			alive, cancel := context.WithTimeout(ctx, interval/3)
			if err := a.Alive(alive); err == nil {
				c.notify(log, daemon.SdNotifyWatchdog)
			} else if ctx.Err() == nil {
				log.Error("no decision could be made in time; the watchdog is not fed", zap.Error(err))
			}
			cancel()
		}
	}
}

// notify tells systemd; without systemd it does nothing.
func (c *cli) notify(log *logging.Log, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", zap.Error(err))
	}
}

func status(a *app.App) string {
	st := a.Status(context.Background())
	text := fmt.Sprintf("answering on %d addresses", len(a.Addresses()))
	if st.Config.Fault != "" {
		text += "; the last reload was refused"
	}
	return text
}
