package app

import (
	"os"

	"go.uber.org/zap"
)

// The names under which the service manager keeps what outlives the process.
const (
	milterSessions    = "milter-sessions"
	policyConnections = "policy-connections"
)

// keeper returns what a door gives its connections to when it stops, nil when
// nobody keeps them.
func (a *App) keeper(name string) func([]*os.File) error {
	if a.o.Keep == nil {
		return nil
	}
	return func(files []*os.File) error { return a.o.Keep(name, files) }
}

// resumeSessions goes on with the milter sessions of the process before, and
// resumePolicy with the policy door's connections. What fails costs those
// connections, and nothing else.
func (a *App) resumeSessions() {
	if files := a.o.Inherited.Kept(milterSessions); len(files) > 0 {
		if err := a.milter.Resume(files); err != nil {
			a.log.Error("milter sessions of the process before", zap.Error(err))
		}
		a.forget(milterSessions)
	}
}

func (a *App) resumePolicy() {
	if files := a.o.Inherited.Kept(policyConnections); len(files) > 0 {
		a.log.Info("policy connections go on", zap.Int("connections", a.door.Resume(files)))
		a.forget(policyConnections)
	}
}

// forget has the service manager close its copies: one that is left would keep
// a connection open that has been closed here.
func (a *App) forget(name string) {
	if a.o.Forget == nil {
		return
	}
	if err := a.o.Forget(name); err != nil {
		a.log.Error("files that the service manager keeps", zap.String("name", name), zap.Error(err))
	}
}
