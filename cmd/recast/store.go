package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"recast/provision"
	"recast/store"
)

func newStore() *cobra.Command {
	var host hostFlags
	cmd := &cobra.Command{Use: "store", GroupID: "server", Short: "Back up, restore and copy the store of a stopped server",
		Long: `Back up, restore and copy the store of a stopped server: what is declared, every machine's
state, leases, sealed secrets and the audit log. Images and the key file that opens the secrets are
no part of it: copy them from the data folder, and keep the key file apart from backups.

A running server holds its file, and these commands refuse to touch it.`}
	host.add(cmd.PersistentFlags())
	backup := &cobra.Command{
		Use: "backup FILE|-", Short: "Write every record to a file",
		Long: `Write every record to a file that does not exist yet, or to standard output, with a digest that
restore checks. It holds the sealed secrets.`,
		Example: "  systemctl stop recast && recast store backup recast.backup; systemctl start recast",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := host.read(cmd)
			if err != nil {
				return err
			}
			s, err := openStopped(cmd.Context(), storeName(c), false)
			if err != nil {
				return err
			}
			n, err := backupTo(cmd, s, args[0])
			if err := errors.Join(err, s.Close()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d records\n", n)
			return nil
		}}
	restore := &cobra.Command{
		Use: "restore FILE|-", Short: "Make the store anew from a backup",
		Long: `Make the store anew from a backup, with an epoch of its own: what was promised to machines
before is void, and nothing is written to a disk until a new plan is applied. The audit log says
who restored it. A store that exists is never touched: move it away first. For a cluster, restore
into a data folder and copy from there.`,
		Example: "  mv /var/lib/recast/recast.db /var/lib/recast/recast.db.old\n  recast store restore recast-2026-11-22.backup",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := host.read(cmd)
			if err != nil {
				return err
			}
			if len(c.Store.Endpoints) > 0 {
				return codeError{errors.New("restore into a file, with --data FOLDER, then: recast store copy FOLDER/recast.db etcd:ENDPOINT"), exitUsage}
			}
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("read backup: %w", err)
				}
				defer f.Close()
				in = f
			}
			if err := os.MkdirAll(c.Data, 0o700); err != nil {
				return fmt.Errorf("make the data folder: %w", err)
			}
			n, err := store.Restore(cmd.Context(), in, c.storeFile(), func(s store.Store) error {
				return recordOffline(cmd.Context(), s, "store restore", "from "+args[0]+"; the epoch is a new one")
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d records; the epoch is a new one\n", n)
			return nil
		}}
	copyCmd := &cobra.Command{
		Use: "copy FROM TO", Short: "Copy every record to another store",
		Long: `Copy every record to another, empty store. Each is the file of a store, or etcd:ENDPOINT,...
for a cluster. A copy that was interrupted goes on when it is repeated.`,
		Example: "  recast store copy /var/lib/recast/recast.db etcd:https://a:2379,https://b:2379,https://c:2379",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := openStopped(cmd.Context(), args[0], false)
			if err != nil {
				return err
			}
			to, err := openStopped(cmd.Context(), args[1], true)
			if err != nil {
				return errors.Join(err, from.Close())
			}
			n, err := store.Copy(cmd.Context(), from, to)
			if err == nil {
				err = recordOffline(cmd.Context(), to, "store copy", "from "+args[0])
			}
			if err := errors.Join(err, to.Close(), from.Close()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d records\n", n)
			return nil
		}}
	return parent(cmd, backup, restore, copyCmd)
}

// etcdPrefix begins the name of a store that is a cluster.
const etcdPrefix = "etcd:"

func storeName(c config) string {
	if len(c.Store.Endpoints) > 0 {
		return etcdPrefix + strings.Join(c.Store.Endpoints, ",")
	}
	return c.storeFile()
}

// openStopped opens a store that no server may hold; a file is made only where
// that is meant.
func openStopped(ctx context.Context, name string, create bool) (store.Store, error) {
	if endpoints, ok := strings.CutPrefix(name, etcdPrefix); ok {
		return store.OpenEtcd(ctx, store.EtcdOptions{Endpoints: strings.Split(endpoints, ","), Hold: fmt.Sprintf("recast store (pid %d)", os.Getpid())})
	}
	return store.OpenBolt(name, store.BoltOptions{MustExist: !create, Timeout: 500 * time.Millisecond})
}

// recordOffline puts what was done to a stopped server's store into its audit log.
func recordOffline(ctx context.Context, s store.Store, what, detail string) error {
	who := "operator"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		who += "@" + host
	}
	return provision.RecordIn(ctx, s, provision.AuditEntry{At: time.Now(), Who: who, What: what, Detail: detail})
}

// backupTo writes a new file, 0600, that is whole or not there.
func backupTo(cmd *cobra.Command, s store.Store, file string) (n int, err error) {
	if file == "-" {
		return store.Backup(cmd.Context(), s, cmd.OutOrStdout())
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return 0, fmt.Errorf("write backup: %w: name a file that does not exist yet", err)
	}
	if err != nil {
		return 0, fmt.Errorf("write backup: %w", err)
	}
	n, err = store.Backup(cmd.Context(), s, io.Writer(f))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(file)
	}
	return n, err
}
