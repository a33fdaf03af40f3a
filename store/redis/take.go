package redis

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name that Redis gives a script
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
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
	if s.cluster && len(takes) > 1 {
		return s.takeApart(ctx, now, takes, peek)
	}
	return s.takeTogether(ctx, now, takes, peek)
}

func (s *Store) takeTogether(ctx context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	args := make([]any, 0, 5+2*len(takes))
	args = append(args, len(takes))
	for i := range takes {
		args = append(args, s.valueName(store.MeterSpace, takes[i].Key))
	}
	values := make([]byte, 0, 8*(4+6*len(takes)))
	values = appendDoubles(values, now.UnixMicro(), now.UnixMilli(), meter.Skew.Milliseconds(), flag(peek))
	args = append(args, "", "")
	for i := range takes {
		t := &takes[i]
		keep := max(t.Expires(now).Sub(now)+slack, time.Second)
		values = appendDoubles(values, int64(t.Kind), flag(t.Hard), t.Add, t.Most, keep.Milliseconds())
		if t.Kind != meter.Rate {
			values = appendDoubles(values, t.Start.UnixMilli())
		}
		if t.Kind == meter.Distinct {
			args = append(args, t.Member)
		}
	}
	args[1+len(takes)], args[2+len(takes)] = "<"+strings.Repeat("d", len(values)/8), values
	cmd, err := s.script(ctx, takeScript, takeSHA, func() *redis.Cmd { return redis.NewCmd(ctx, args...) })
	if err != nil {
		return nil, false, err
	}
	return levels(cmd, now, takes)
}

// appendDoubles appends numbers as the script reads them: floating point, which
// is exact up to 2^53.
func appendDoubles(b []byte, numbers ...int64) []byte {
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(float64(n)))
	}
	return b
}

// levels reads the answer of the script, which is short when no meter is full.
func levels(cmd *redis.Cmd, now time.Time, takes []meter.Take) ([]meter.Level, bool, error) {
	n, err := cmd.Int64Slice()
	if err == nil && len(n) != 1+len(takes) && len(n) != 1+3*len(takes) {
		err = fmt.Errorf("%d numbers", len(n))
	}
	if err != nil {
		return nil, false, fmt.Errorf("store: redis: answer of the script: %w", err)
	}
	out := make([]meter.Level, len(takes))
	if len(n) == 1+len(takes) {
		for i := range takes {
			out[i].Used = n[1+i]
		}
		return out, n[0] == 1, nil
	}
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

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
