package redis

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name that Redis gives a script
	_ "embed"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"postern/internal/meter"
	"postern/store"
)

//go:embed take.lua
var takeScript string

var takeSHA = func() string {
	sum := sha1.Sum([]byte(takeScript)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}()

// TakeMeters implements meter.Store: one round trip for all meters.
func (s *Store) TakeMeters(ctx context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	args := make([]any, 0, 7+8*len(takes))
	args = append(args, "evalsha", takeSHA, len(takes))
	for i := range takes {
		args = append(args, s.valueName(store.MeterSpace, takes[i].Key))
	}
	args = append(args, now.UnixMicro(), now.UnixMilli(), meter.Skew.Milliseconds(), flag(peek))
	for i := range takes {
		t := &takes[i]
		keep := max(t.Expires(now).Sub(now)+slack, time.Second)
		args = append(args, int(t.Kind), t.Add, t.Most, t.Start.UnixMilli(), t.Member, flag(t.Hard), keep.Milliseconds())
	}
	for attempt := 0; ; attempt++ {
		cmd := redis.NewCmd(ctx, append([]any(nil), args...)...)
		err := s.do(ctx, cmd)
		if err == nil {
			return levels(cmd, now, takes)
		}
		if attempt > 0 || !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return nil, false, err
		}
		if err := s.do(ctx, redis.NewStringCmd(ctx, "script", "load", takeScript)); err != nil {
			return nil, false, err
		}
	}
}

// levels reads the answer of the script.
func levels(cmd *redis.Cmd, now time.Time, takes []meter.Take) ([]meter.Level, bool, error) {
	n, err := cmd.Int64Slice()
	if err == nil && len(n) != 1+3*len(takes) {
		err = fmt.Errorf("%d numbers", len(n))
	}
	if err != nil {
		return nil, false, fmt.Errorf("store: redis: answer of the script: %w", err)
	}
	out := make([]meter.Level, len(takes))
	for i := range takes {
		l := meter.Level{Over: n[1+3*i] == 1, Used: n[2+3*i]}
		if l.Over {
			l.Wait = time.Duration(n[3+3*i]) * time.Microsecond
			if takes[i].Kind != meter.Rate {
				l.Wait = takes[i].End.Sub(now)
			}
		}
		out[i] = l
	}
	return out, n[0] == 1, nil
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}
