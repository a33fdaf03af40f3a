package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"postern/store"
)

// client is a connection to a server, to the one that Sentinel names, or to a
// Cluster.
type client interface {
	redis.UniversalClient
	AsyncAutoPipeline() (*redis.AutoPipeliner, error)
}

// connect makes the client that cfg asks for. It does not wait for anything.
func connect(cfg *store.RedisConfig, password, sentinelPassword string) (client, error) {
	if len(cfg.Addrs) == 0 {
		return nil, fmt.Errorf("store: redis: no address")
	}
	o := &redis.UniversalOptions{
		Addrs: cfg.Addrs, Username: cfg.Username, Password: password, DB: cfg.DB, MasterName: cfg.Master,
		SentinelUsername: cfg.SentinelUsername, SentinelPassword: sentinelPassword,
		DialTimeout: 250 * time.Millisecond, DialerRetries: 1,
		ReadTimeout: cfg.Timeout.D() + cfg.Timeout.D()/2, WriteTimeout: cfg.Timeout.D() + cfg.Timeout.D()/2,
		PoolTimeout: 2 * cfg.Timeout.D(), PoolSize: cfg.Pool,
		// A script that is sent again counts twice.
		MaxRetries: -1, ContextTimeoutEnabled: true, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if cfg.TLS {
		t, err := tlsConfig(cfg)
		if err != nil {
			return nil, err
		}
		o.TLSConfig = t
	}
	switch {
	case cfg.Cluster:
		cluster := o.Cluster()
		cluster.MaxRedirects = 3 // after a slot has moved
		return redis.NewClusterClient(cluster), nil
	case cfg.Master != "":
		return redis.NewFailoverClient(o.Failover()), nil
	case len(cfg.Addrs) > 1:
		return nil, fmt.Errorf("store: redis: %d addresses of one server", len(cfg.Addrs))
	}
	simple := o.Simple()
	if strings.HasPrefix(simple.Addr, "/") {
		simple.Network = "unix"
	}
	return redis.NewClient(simple), nil
}

func tlsConfig(cfg *store.RedisConfig) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12} // the library sets the name for each address
	if cfg.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("store: redis: %w", err)
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("store: redis: %s holds no certificate", cfg.CAFile)
	}
	return t, nil
}

// servers are those that hold keys: all masters of a Cluster.
func (s *Store) servers(ctx context.Context) (out []redis.Cmdable, err error) {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return []redis.Cmdable{s.client}, nil
	}
	var mu sync.Mutex
	err = cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		out = append(out, c)
		return nil
	})
	return out, err
}

// scan calls yield with batches of keys that match until it returns false.
func (s *Store) scan(ctx context.Context, match string, yield func(keys []string) (bool, error)) error {
	servers, err := s.servers(ctx)
	if err != nil {
		return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
	}
	for _, server := range servers {
		var cursor uint64
		for {
			keys, next, err := server.Scan(ctx, cursor, match, page).Result()
			if err != nil {
				return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
			}
			if more, err := yield(keys); err != nil || !more {
				return err
			}
			if cursor = next; cursor == 0 {
				break
			}
		}
	}
	return nil
}
