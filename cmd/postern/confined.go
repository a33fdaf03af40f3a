package main

import (
	"fmt"
	"strings"

	"go.uber.org/zap"

	"postern/config"
	"postern/internal/confine"
)

// confined is what the daemon is held to for as long as it runs.
type confined struct {
	held  bool
	files confine.Files
}

// confineTo has the kernel hold the daemon to the files of the configuration, if
// that wants it.
func confineTo(cfg *config.Config, log *zap.Logger) (*confined, error) {
	c := &confined{files: cfg.Files()}
	switch key := cfg.RunsPrograms(); {
	case !cfg.Landlock:
	case key != "":
		log.Info("landlock is off: sendmail could not hand over mail under it", zap.String("key", key))
	case !confine.Supported():
		log.Info("landlock is off: this kernel does not have it")
	default:
		if err := confine.To(c.files); err != nil {
			return nil, fmt.Errorf("%w; landlock = false does without it", err)
		}
		c.held = true
		log.Info("landlock is on", zap.Strings("read", c.files.Read), zap.Strings("write", c.files.Write))
	}
	return c, nil
}

// loaded returns the error of a reload, given that of reading the configuration:
// what the daemon is held to stays as it is until a restart.
func (c *confined) loaded(cfg *config.Config, err error) error {
	const since = "landlock holds the daemon to the directories that its configuration named at the start; a restart is needed"
	if !c.held {
		return err
	}
	if err != nil {
		if strings.Contains(err.Error(), "permission denied") {
			return fmt.Errorf("%w\nIf it is readable otherwise: %s", err, since)
		}
		return err
	}
	if lacks := c.files.Lacks(cfg.Files()); len(lacks) > 0 {
		return fmt.Errorf("%s: %s", strings.Join(lacks, ", "), since)
	}
	if key := cfg.RunsPrograms(); key != "" {
		return fmt.Errorf("%s: sendmail cannot be run under landlock, which ends with a restart only", key)
	}
	return nil
}
