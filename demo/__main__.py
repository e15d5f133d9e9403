from nexus.demo.run import main

main()
