package main

import (
	"fmt"
	"os"
	"runtime"
)

var version = "unset"

func main() {
	who := "world"
	if len(os.Args) > 1 {
		who = os.Args[1]
	}
	fmt.Printf("Hello, %s! (version %s, %s/%s, built by rbuild)\n", who, version, runtime.GOOS, runtime.GOARCH)
}
