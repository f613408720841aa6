package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"recast/bmc"
	"recast/console"
	"recast/dhcp"
	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/provision"
	"recast/store"
	"recast/syslog"
	"recast/tftp"
	"recast/web"
)

func newServe() *cobra.Command {
	var host hostFlags
	var printConfig bool
	cmd := &cobra.Command{
		Use: "serve", GroupID: "server", Short: "Run the server",
		Long: `Run the server: DHCP, TFTP, boot scripts, images and the API.

DHCP, TFTP and syslog answer nothing until a Network is declared and applied. The two TCP ports
listen on every address from the start, or on those that boot and agent name. Data stand under
` + defaultData + `, or where RECAST_DATA says; ` + defaultConfig + ` overrides the defaults, and
--print-config shows what is in force. At first start a CA, a key file and the operator's token are
made.

SIGTERM stops it once transfers have finished, SIGHUP reads the configuration's log level and the
host's interfaces again. Sockets passed in by systemd are used by their names: boot, agent,
operator.`,
		Example: "  recast serve --print-config > /etc/recast/recast.yaml\n  recast serve --data /srv/recast",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			read := func() (config, error) { return host.read(cmd) }
			c, err := read()
			if err != nil {
				return err
			}
			if printConfig {
				return yaml.NewEncoder(cmd.OutOrStdout()).Encode(c)
			}
			return serve(cmd.Context(), c, read)
		},
	}
	host.add(cmd.Flags())
	cmd.Flags().BoolVar(&printConfig, "print-config", false, "show what is in force, and end")
	return cmd
}

func logLevel(level string) (l slog.Level, err error) {
	switch level {
	case "debug", "info", "warn", "error":
		return l, l.UnmarshalText([]byte(level))
	}
	return l, fmt.Errorf("log.level %q: want debug, info, warn or error", level)
}

// openStore opens the file store, or the cluster where endpoints are named. One
// server at a time holds a cluster; the others stand by here.
func openStore(ctx context.Context, c config, log *slog.Logger) (store.Store, error) {
	if len(c.Store.Endpoints) == 0 {
		return store.OpenBolt(c.storeFile(), store.BoltOptions{Log: log})
	}
	log.Info("opening the store", "endpoints", c.Store.Endpoints)
	said := ""
	for {
		s, err := store.OpenEtcd(ctx, store.EtcdOptions{Endpoints: c.Store.Endpoints, Hold: fmt.Sprintf("%s (pid %d)", serverName(), os.Getpid()), Log: log})
		if !errors.Is(err, store.ErrHeld) {
			return s, err
		}
		if said != err.Error() {
			said = err.Error()
			log.Warn("standing by: nothing is served from here until that one is gone", "err", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// watchHold ends with an error once another server may hold the store.
func (s *server) watchHold(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := s.store.Held(); errors.Is(err, store.ErrLost) {
				return err
			}
		}
	}
}

// serverName is this server in the audit log and in the hold on a cluster.
func serverName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return fmt.Sprintf("recast serve@%s", host)
}

// server is everything that runs, wired.
type server struct {
	config
	// reread gives the configuration anew, for SIGHUP.
	reread  func() (config, error)
	level   slog.LevelVar
	log     *slog.Logger
	store   store.Store
	images  *image.Store
	engine  *provision.Engine
	dhcp    *dhcp.Server
	loaders *ipxe.Loaders
	library *ipxe.Library
	web     *web.Server
	ours    ourAddresses
	tftp    *tftp.Server
	noTFTP  atomic.Pointer[string] // why it is not served; nil: it is, or nobody wants it
	oneTFTP sync.Mutex             // one runs at a time
	syslog  *syslog.Server         // nil: none is received
	console console.Hub
	token   string
	meters  meters

	hup chan os.Signal
	bad bmc.BadAnswers
}

func serve(ctx context.Context, c config, reread func() (config, error)) (err error) {
	s := &server{config: c, reread: reread}
	level, err := logLevel(c.Log.Level)
	if err != nil {
		return err
	}
	s.level.Set(level)
	makeRoom()
	s.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &s.level}))
	// From the first moment: a hangup that nobody waits for ends the process.
	s.hup = make(chan os.Signal, 1)
	signal.Notify(s.hup, syscall.SIGHUP)
	defer signal.Stop(s.hup)
	if err := s.open(ctx); err != nil {
		if ctx.Err() != nil {
			err = nil // stopped while it stood by, or waited for its store
		}
		return errors.Join(err, s.close())
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.run(ctx)
}

func (s *server) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.Data, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if s.store, err = openStore(ctx, s.config, s.log); err != nil {
		return err
	}
	if s.images, err = image.Open(filepath.Join(s.Data, "images"), image.Options{MaxSize: int64(s.Images.MaxSize), Log: s.log,
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
	if s.library, err = ipxe.OpenLibrary(filepath.Join(s.Data, "loaders")); err != nil {
		s.log.Warn("not every imported loader is served", "err", err)
	}
	bootPort, err := portOf(s.Boot)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	agentPort, err := portOf(s.Agent)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	syslogPort := 0
	if s.Syslog != "" {
		if syslogPort, err = portOf(s.Syslog); err != nil {
			return fmt.Errorf("syslog: %w", err)
		}
		s.syslog = &syslog.Server{Addr: s.Syslog, Observe: s.observe, Log: s.log}
	}
	if s.engine, err = provision.Open(ctx, provision.Config{Store: s.store, Images: s.images,
		KeyFile: filepath.Join(s.Data, "key.age"), Address: s.address, OwnAddresses: localAddrs, AgentPort: agentPort, BootPort: bootPort, SyslogPort: syslogPort,
		Ramdisk: (&ramdiskFolder{dir: s.ramdiskDir()}).files, Loader: s.loaderProblem, Towards: towards, OnceLoader: s.onceLoader, Dial: s.dial, SoftOff: cmp.Or(s.SoftOff, -1), WatchBMCs: s.WatchBMCs, Findings: s.findings, Log: s.log}); err != nil { // 0 s is "at once" here, the default there
		return err
	}
	if s.token, err = readToken("operator", filepath.Join(s.Data, "operator.token"), func() error {
		return s.engine.Record(ctx, provision.AuditEntry{Who: serverName(), What: "operator token made"})
	}); err != nil {
		return err
	}
	// It opens counts alone, which is nothing to audit.
	metricsToken, err := readToken("metrics", filepath.Join(s.Data, "metrics.token"), func() error { return nil })
	if err != nil {
		return err
	}
	s.console = console.Hub{Dir: filepath.Join(s.Data, "consoles"), Open: s.openConsole, Hopeless: hopeless, Log: s.log}
	boot := ipxe.Boot{Have: s.loaders.Have, Library: s.library}
	s.dhcp = &dhcp.Server{Store: s.store, Booter: s.engine, Observe: s.observe, Log: s.log,
		Bootfile: s.bootfile(boot, bootPort)}
	s.tftp = &tftp.Server{Files: s.loaders, Find: s.findFile, Observe: s.observe, Log: s.log}
	s.web = &web.Server{Engine: s.engine, Images: s.images,
		Scripts: &ipxe.Handler{Booter: s.engine, Tokens: s.engine.Once, Loaders: s.loaders, Library: s.library, Port: bootPort, VLAN: s.vlanOf, Turns: &ipxe.Turns{Max: cmp.Or(s.Turns, -1)}, Observe: s.observe, Log: s.log},
		Ramdisk: http.Dir(s.ramdiskDir()), OperatorToken: s.token, ImageMaxSize: int64(s.Images.MaxSize), Findings: s.findings, Version: version,
		Malformed: s.malformed,
		Relayed:   func() map[string]uint64 { return s.dhcp.Stats().Relayed },
		Capture:   s.capture,
		Consoles:  &s.console,
		Metrics:   s.metrics, MetricsToken: metricsToken,
		Observe: s.observe, Log: s.log}
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
	s.web.Stopping = ctx.Done()
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
	api := s.web.APIHTTP()
	api.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificates()}
	boot := s.web.BootHTTP()

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
		start("boot HTTP", func() error { return boot.Serve(web.Share(l)) })
	}
	start("engine", func() error { return s.engine.Run(ctx) })
	start("store", func() error { return s.watchHold(ctx) })
	start("consoles", func() error { return s.keepConsoles(ctx) })
	start("DHCP", func() error { return s.dhcp.Run(ctx) })
	stopTFTP := s.followNetworks(ctx, &work)
	defer stopTFTP()
	if err = s.leaveContext(append(operator, apiListeners...)); err == nil {
		s.announce(apiListeners, operator, bootListeners)
	}

	for err == nil {
		select {
		case <-s.hup:
			s.reload()
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
	s.log.Info("serving", "version", version, "data", s.Data, "token", filepath.Join(s.Data, "operator.token"), "ca", s.engine.Authority().Digest())
}

// reload takes up what may change while the server runs.
func (s *server) reload() {
	c, err := s.reread()
	if err != nil {
		s.log.Error("SIGHUP: the configuration in force stays", "err", err)
		return
	}
	level, err := logLevel(c.Log.Level)
	if err == nil {
		s.level.Set(level)
	}
	s.config.Log = c.Log
	if !reflect.DeepEqual(c, s.config) {
		s.log.Warn("SIGHUP: only log.level is taken up; the rest of the configuration needs a restart")
	}
	s.log.Info("SIGHUP: configuration, networks and interfaces are read again", "level", level)
	s.serveSet(s.engine.Set())
}

// dial opens a BMC whose bad answers are counted.
func (s *server) dial(ctx context.Context, t bmc.Target) (bmc.Client, error) {
	t.Bad = &s.bad
	return bmc.Dial(ctx, t)
}

// observe takes what any of the servers saw.
func (s *server) observe(o inventory.Observation) {
	s.meters.observe(&o)
	if fetched(o) {
		s.web.Scripts.Turns.Done(o.Remote, time.Now())
	}
	s.engine.Observe(o)
}

// findings of the DHCP server, once there is one, and of TFTP.
func (s *server) findings() (all []string) {
	if s.dhcp != nil {
		all = s.dhcp.Findings()
	}
	if text := s.noTFTP.Load(); text != nil {
		all = append(all, *text)
	}
	return all
}

// malformed counts what machines and BMCs sent and was not believed, by reason.
func (s *server) malformed() map[string]uint64 {
	out := map[string]uint64{}
	for why, n := range s.dhcp.Stats().Malformed {
		out["DHCP: "+why] = n
	}
	for why, n := range s.tftp.Dropped() {
		out["TFTP: "+why] = uint64(n)
	}
	if s.syslog != nil {
		for why, n := range s.syslog.Dropped() {
			out["syslog: "+why] = n
		}
	}
	for why, n := range s.bad.Counts() {
		out["BMC: "+why] = n
	}
	return out
}
