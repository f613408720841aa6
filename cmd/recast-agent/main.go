// Command recast-agent is the init of recast's ramdisk. On an installed system
// "recast-agent report" tells the server which generation runs there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"recast/agent"
)

func main() {
	if os.Getpid() == 1 {
		agent.Init() // never returns
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "recast-agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	usage := fmt.Errorf("usage: recast-agent report --dir DIR | recast-agent version (as process 1 it is the ramdisk's init)")
	if len(args) == 0 {
		return usage
	}
	switch args[0] {
	case "version":
		fmt.Println(agent.Version)
		return nil
	case "report":
		fs := flag.NewFlagSet("report", flag.ContinueOnError)
		dir := fs.String("dir", "", "where the config volume is mounted")
		patience := fs.Duration("patience", time.Hour, "how long a server that is away is asked again")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		if *dir == "" || fs.NArg() > 0 {
			return usage
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
		defer stop()
		return agent.ReportBooted(ctx, *dir, agent.VarFS(agent.EFIVars), *patience, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "recast-agent: "+format+"\n", args...)
		})
	}
	return usage
}
