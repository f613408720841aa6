package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"recast/dhcp"
	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/provision"
	"recast/store"
	"recast/tftp"
	"recast/web"
)

func newServe() *cobra.Command {
	var path string
	var printConfig bool
	var data string
	cmd := &cobra.Command{
		Use: "serve", GroupID: "server", Short: "Run the server",
		Long: `Run the server: DHCP, TFTP, boot scripts, images and the API.

Nothing is answered on any network until a Network is declared and applied. Data
stand under ` + defaultData + `; ` + defaultConfig + ` overrides the defaults.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(path, cmd.Flags().Changed("config"))
			if err != nil {
				return err
			}
			if data != "" {
				c.Data = data
			}
			if printConfig {
				return yaml.NewEncoder(cmd.OutOrStdout()).Encode(c)
			}
			return serve(cmd.Context(), c)
		},
	}
	cmd.Flags().StringVar(&path, "config", defaultConfig, "configuration file")
	cmd.Flags().StringVar(&data, "data", "", "data folder (overrides the configuration)")
	cmd.Flags().BoolVar(&printConfig, "print-config", false, "show what is in force, and end")
	return cmd
}

func newLogger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log.level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// openStore opens the file store, or the cluster where endpoints are named.
func openStore(ctx context.Context, c config) (store.Store, error) {
	if len(c.Store.Endpoints) > 0 {
		return store.OpenEtcd(ctx, store.EtcdOptions{Endpoints: c.Store.Endpoints})
	}
	return store.OpenBolt(filepath.Join(c.Data, "recast.db"), store.BoltOptions{})
}

// server is everything that runs, wired.
type server struct {
	config
	log     *slog.Logger
	store   store.Store
	images  *image.Store
	engine  *provision.Engine
	dhcp    *dhcp.Server
	loaders *ipxe.Loaders
	web     *web.Server
	tftp    *tftp.Server
	token   string
}

func serve(ctx context.Context, c config) (err error) {
	log, err := newLogger(c.Log.Level)
	if err != nil {
		return err
	}
	s := &server{config: c, log: log}
	if err := s.open(ctx); err != nil {
		return errors.Join(err, s.close())
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.run(ctx)
}

func (s *server) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.Data, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if s.store, err = openStore(ctx, s.config); err != nil {
		return err
	}
	if s.images, err = image.Open(filepath.Join(s.Data, "images"), image.Options{MaxSize: s.Images.MaxSize, Log: s.log,
		OnChange: func(d inventory.Digest) {
			if s.engine != nil {
				s.engine.Mend(d)
			}
		}}); err != nil {
		return err
	}
	if s.loaders, err = ipxe.OpenLoaders(); err != nil {
		return err
	}
	if err := s.loaders.Missing(); err != nil {
		s.log.Warn("not every firmware can netboot", "err", err)
	}
	bootPort, err := portOf(s.Boot)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	agentPort, err := portOf(s.Agent)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if s.engine, err = provision.Open(ctx, provision.Config{Store: s.store, Images: s.images,
		KeyFile: filepath.Join(s.Data, "key.age"), Address: s.address, AgentPort: agentPort, BootPort: bootPort,
		Ramdisk: s.ramdiskFiles, SoftOff: s.SoftOff, Log: s.log}); err != nil {
		return err
	}
	if s.token, err = operatorToken(filepath.Join(s.Data, "operator.token")); err != nil {
		return err
	}
	boot := ipxe.Boot{Have: s.loaders.Have}
	s.dhcp = &dhcp.Server{Store: s.store, Booter: s.engine, Observe: s.engine.Observe, Log: s.log,
		Bootfile: func(c ipxe.Client, spec ipxe.Spec, server netip.Addr) (string, bool) {
			return boot.Bootfile(c, spec, server, bootPort)
		}}
	s.tftp = &tftp.Server{Files: s.loaders, Extra: map[string][]byte{ipxe.AutoexecName: []byte(ipxe.Autoexec(bootPort))}, Observe: s.engine.Observe, Log: s.log}
	s.web = &web.Server{Engine: s.engine, Images: s.images,
		Scripts: &ipxe.Handler{Booter: s.engine, Loaders: s.loaders, Port: bootPort, Observe: s.engine.Observe, Log: s.log},
		Ramdisk: http.Dir(s.ramdiskDir()), OperatorToken: s.token, ImageMaxSize: s.Images.MaxSize, Version: version,
		Observe: s.engine.Observe, Log: s.log}
	return nil
}

func (s *server) close() (err error) {
	if s.images != nil {
		err = s.images.Close()
	}
	if s.store != nil {
		err = errors.Join(err, s.store.Close())
	}
	return err
}

// drain is how long transfers may take to finish after SIGTERM.
const drain = 30 * time.Second

func (s *server) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	passed := passedSockets()
	apiListeners, err := s.listen(passed, "agent", s.Agent)
	if err != nil {
		return err
	}
	operator, err := passed.listeners("operator")
	if err != nil {
		return err
	}
	bootListeners, err := s.listen(passed, "boot", s.Boot)
	if err != nil {
		return err
	}
	api := web.NewHTTP(s.web.API(), s.log)
	// HTTP/1.1 only: one long poll per connection is all an agent needs.
	api.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificates()}
	boot := web.NewHTTP(s.web.Boot(), s.log)

	var work sync.WaitGroup
	failed := make(chan error, 16)
	start := func(what string, f func() error) {
		work.Go(func() {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	for _, l := range append(apiListeners, operator...) {
		start("API", func() error { return api.ServeTLS(l, "", "") })
	}
	for _, l := range bootListeners {
		start("boot HTTP", func() error { return boot.Serve(l) })
	}
	start("engine", func() error { return s.engine.Run(ctx) })
	start("DHCP", func() error { return s.dhcp.Run(ctx) })
	stopTFTP := s.followNetworks(ctx, &work)
	defer stopTFTP()
	if err := s.leaveContext(append(operator, apiListeners...)); err != nil {
		cancel()
		return err
	}
	s.announce(apiListeners, operator, bootListeners)

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for err == nil {
		select {
		case <-hup:
			s.log.Info("SIGHUP: networks and interfaces are read again")
			if err := s.dhcp.Update(s.engine.Set()); err != nil {
				s.log.Warn("not every network is served", "err", err)
			}
			continue
		case err = <-failed:
			s.log.Error("stopping", "err", err)
		case <-ctx.Done():
			s.log.Info("stopping: transfers may finish", "deadline", drain)
		}
		break
	}
	cancel()
	closing, done := context.WithTimeout(context.Background(), drain)
	defer done()
	_ = boot.Shutdown(closing)
	_ = api.Shutdown(closing)
	stopTFTP()
	work.Wait()
	return err
}

// followNetworks tells DHCP of every new Set, and runs TFTP while there is a
// Network to serve.
func (s *server) followNetworks(ctx context.Context, work *sync.WaitGroup) (stop func()) {
	var mu sync.Mutex
	var cancel context.CancelFunc
	stop = func() {
		mu.Lock()
		defer mu.Unlock()
		if cancel != nil {
			cancel()
			cancel = nil
		}
	}
	s.engine.OnSet(func(set *inventory.Set) {
		ifaces, err := dhcp.Interfaces()
		if err != nil {
			s.log.Warn("interfaces cannot be listed", "err", err)
		}
		for _, line := range dhcp.Describe(set, ifaces) {
			s.log.Info(line)
		}
		if err := s.dhcp.Update(set); err != nil {
			s.log.Warn("not every network is served", "err", err)
		}
		serves := false
		for _, n := range set.Networks {
			serves = serves || n.DHCP != inventory.DHCPOff
		}
		if !serves {
			stop()
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if cancel != nil || ctx.Err() != nil {
			return
		}
		var tctx context.Context
		tctx, cancel = context.WithCancel(ctx)
		work.Go(func() {
			if err := s.tftp.Run(tctx); err != nil {
				s.log.Error("TFTP is not served", "err", err)
			}
		})
	})
	return stop
}

func (s *server) listen(passed sockets, name, addr string) ([]net.Listener, error) {
	ls, err := passed.listeners(name)
	if err != nil || len(ls) > 0 {
		return ls, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w; change %q in the configuration", name, err, name)
	}
	return []net.Listener{l}, nil
}

func (s *server) announce(api, operator, boot []net.Listener) {
	for _, l := range api {
		s.log.Info("listening", "for", "agents and operators", "addr", l.Addr())
	}
	for _, l := range operator {
		s.log.Info("listening", "for", "operators", "addr", l.Addr())
	}
	for _, l := range boot {
		s.log.Info("listening", "for", "machines (scripts, ramdisk, images)", "addr", l.Addr())
	}
	s.log.Info("serving", "version", version, "data", s.Data, "token", filepath.Join(s.Data, "operator.token"))
}

// leaveContext writes what the CLI of root on this host needs.
func (s *server) leaveContext(listeners []net.Listener) error {
	if len(listeners) == 0 {
		return nil
	}
	addr := listeners[0].Addr().(*net.TCPAddr).AddrPort()
	host := addr.Addr().Unmap()
	if host.IsUnspecified() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	token, err := filepath.Abs(filepath.Join(s.Data, "operator.token"))
	if err != nil {
		return err
	}
	ca := s.engine.Authority()
	if err := os.WriteFile(filepath.Join(s.Data, "ca.pem"), ca.PEM(), 0o644); err != nil {
		return fmt.Errorf("write the CA certificate: %w", err)
	}
	return saveContext(filepath.Join(s.Data, localContext), clientContext{Name: "local",
		URL: "https://" + netip.AddrPortFrom(host, addr.Port()).String(), CAPEM: string(ca.PEM()), CADigest: ca.Digest(), TokenFile: token})
}

// certificates issues one for the addresses of this host, again when a client
// comes in on a new one.
func (s *server) certificates() func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var cert *tls.Certificate
	have := map[netip.Addr]bool{}
	return func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		local, _ := netip.ParseAddrPort(h.Conn.LocalAddr().String())
		addr := local.Addr().Unmap()
		if cert != nil && have[addr] {
			return cert, nil
		}
		have[addr] = true
		for _, a := range localAddrs() {
			have[a] = true
		}
		addrs := make([]netip.Addr, 0, len(have))
		for a := range have {
			addrs = append(addrs, a)
		}
		names := []string{"localhost"}
		if host, err := os.Hostname(); err == nil {
			names = append(names, host)
		}
		c, err := s.engine.Authority().Issue(names, addrs, time.Now())
		if err != nil {
			return nil, err
		}
		cert = &c
		return cert, nil
	}
}

func localAddrs() []netip.Addr {
	var out []netip.Addr
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}

// address is ours on a Network: that of the interface in its subnet.
func (s *server) address(network string) (netip.Addr, bool) {
	if s.engine == nil {
		return netip.Addr{}, false
	}
	n := s.engine.Set().Network(network)
	if n == nil {
		return netip.Addr{}, false
	}
	for _, a := range localAddrs() {
		if n.Subnet.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// ramdiskFiles looks each time, so that a ramdisk built while the server runs
// is used at once.
func (s *server) ramdiskFiles(arch inventory.Arch) provision.RamdiskFiles {
	if arch != inventory.AMD64 {
		return provision.RamdiskFiles{}
	}
	for _, f := range []string{"vmlinuz", "initrd.img"} {
		if _, err := os.Stat(filepath.Join(s.ramdiskDir(), f)); err != nil {
			return provision.RamdiskFiles{}
		}
	}
	return provision.RamdiskFiles{Kernel: web.RamdiskPath + "vmlinuz", Initrd: web.RamdiskPath + "initrd.img"}
}

// operatorToken reads the token, or makes it at first start.
func operatorToken(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		if token := strings.TrimSpace(string(raw)); len(token) >= 32 {
			return token, nil
		}
		return "", fmt.Errorf("read the operator's token: %s holds no token; remove it to have a new one made", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the operator's token: %w", err)
	}
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	token := hex.EncodeToString(b[:])
	if err := writePrivate(path, []byte(token+"\n")); err != nil {
		return "", fmt.Errorf("write the operator's token: %w", err)
	}
	return token, nil
}

func portOf(addr string) (int, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, fmt.Errorf("address %q: want [host]:port", addr)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("address %q: the port must be 1-65535", addr)
	}
	return n, nil
}
